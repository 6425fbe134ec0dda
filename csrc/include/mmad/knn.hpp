// Exact k-nearest-neighbour search: narrow products screen, float64 differences decide.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "mmad/cpu_features.hpp"
#include "mmad/matrix.hpp"
#include "mmad/operand.hpp"

namespace mmad {

// The format that `precision` ("float32", "half", "int8" or "auto") stands for on one level with this instruction set.
// Throws std::invalid_argument for another word.
Format screening_format(const std::string& precision, Isa isa);

// How a bank is screened: in a format, and where `coarse` is not 0, first in so many coordinates (64, 128 or 256), both in
// bytes.
struct Screening {
  Format format = Format::float32;
  std::int64_t coarse = 0;
};

// The screening that `precision` ("float32", "half", "int8" or "auto") stands for with this instruction set. "int8" is
// bytes, "auto" what costs least; both are measured on a sample of the bank. Throws as screening_format() does.
Screening choose_screening(Matrix<const float> bank, const std::string& precision, Isa isa, int threads);

class KnnIndex {
 public:
  // Keeps a view of `bank` (the caller owns it) for the pairs that pass the screen, and a rounded copy for the products.
  // Throws std::invalid_argument that names a row which is not finite.
  KnnIndex(Matrix<const float> bank, Screening screening, Isa isa, int threads);
  ~KnnIndex();
  KnnIndex(KnnIndex&&) noexcept;

  // The k nearest rows of each query, nearest first, ties to the lowest row: distances and indices are (Q, k).
  // Identical to sorting float64 distances computed from differences. Requires 1 <= k <= size().
  void search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* indices, int threads) const;

  std::int64_t size() const;
  Screening screening() const;
  std::int64_t nbytes() const;

 private:
  struct Prepared;
  std::unique_ptr<Prepared> prepared_;
};

}  // namespace mmad
