// Exact k-nearest-neighbour search: a narrow product screens, float64 differences decide.
#pragma once

#include <cstdint>
#include <vector>

#include "mmad/cpu_features.hpp"
#include "mmad/matrix.hpp"
#include "mmad/operand.hpp"

namespace mmad {

// The format in which `precision` ("float32", "half", "int8" or "auto") is stored and multiplied with this
// instruction set. Throws std::invalid_argument for another word.
Format screening_format(const std::string& precision, Isa isa);

class KnnIndex {
 public:
  // Keeps a view of `bank` (the caller owns it) for the recheck, and a rounded, packed copy for the product.
  // Throws std::invalid_argument that names a row which is not finite.
  KnnIndex(Matrix<const float> bank, Format format, Isa isa, int threads);

  // The k nearest rows of each query, nearest first, ties to the lowest row: distances and indices are (Q, k).
  // Identical to sorting float64 distances computed from differences. Requires 1 <= k <= size().
  void search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* indices, int threads) const;

  std::int64_t size() const { return bank_.rows; }
  Format format() const { return panels_.format; }
  std::int64_t nbytes() const { return panels_.nbytes() + static_cast<std::int64_t>(center_.size() * sizeof(float)); }

 private:
  Matrix<const float> bank_;
  Isa isa_;
  std::vector<float> center_;
  Panels panels_;
};

}  // namespace mmad
