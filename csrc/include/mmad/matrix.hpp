// Views of memory that somebody else owns. The core never allocates what it returns: the caller hands in the output.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mmad {

// Row-major matrix; `stride` counts elements from one row to the next.
template <typename T>
struct Matrix {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  Matrix() = default;
  Matrix(T* data_, std::int64_t rows_, std::int64_t cols_) : Matrix(data_, rows_, cols_, cols_) {}
  Matrix(T* data_, std::int64_t rows_, std::int64_t cols_, std::int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}

  T* row(std::int64_t i) const { return data + i * stride; }
};

}  // namespace mmad
