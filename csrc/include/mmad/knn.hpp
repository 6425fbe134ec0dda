// Exact k-nearest-neighbour search: narrow products screen, float64 differences decide.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mmad/cpu_features.hpp"
#include "mmad/matrix.hpp"
#include "mmad/operand.hpp"

namespace mmad {

// The format in which `precision` ("float32", "half", "int8" or "auto") is stored and multiplied with this
// instruction set. Throws std::invalid_argument for another word.
Format screening_format(const std::string& precision, Isa isa);

class KnnIndex {
 public:
  // Keeps a view of `bank` (the caller owns it) for the pairs that pass the screen, and a rounded, packed copy for the
  // product; with `coarse` also the projections that rule most pairs out (a twentieth to an eighth more memory).
  // Throws std::invalid_argument that names a row which is not finite.
  KnnIndex(Matrix<const float> bank, Format format, Isa isa, bool coarse, int threads);
  ~KnnIndex();
  KnnIndex(KnnIndex&&) noexcept;

  // The k nearest rows of each query, nearest first, ties to the lowest row: distances and indices are (Q, k).
  // Identical to sorting float64 distances computed from differences. Requires 1 <= k <= size().
  void search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* indices, int threads) const;

  std::int64_t size() const;
  Format format() const;
  bool coarse() const;
  std::int64_t nbytes() const;

 private:
  struct Prepared;
  std::unique_ptr<Prepared> prepared_;
};

}  // namespace mmad
