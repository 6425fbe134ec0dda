// The search of a bank on a CUDA device, for a caller whose arrays are in host memory: cuda_search.cu,
// or no_cuda.cpp in a build without it.
#pragma once

#include <cstdint>
#include <memory>

#include "mmad/matrix.hpp"

namespace mmad {

class CudaSearch {
 public:
  static constexpr std::int64_t kMostNeighbors = 256;
  static constexpr std::int64_t kMostRows = 2147483647;  // the kernels number rows with 32 bits

  // Devices that this build can use.
  static int device_count();
  static std::int64_t largest_dim();

  // Copies finite rows to the device, in float32 and rounded to 16 bits, or to int8. Throws Failure, as search() does.
  CudaSearch(Matrix<const float> bank, bool int8, int device);
  ~CudaSearch();

  // As KnnIndex::search, with the same answers; at most kMostNeighbors. Threads may search at the same time: each has a
  // stream and memory of its own, which stay for the next one.
  void search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* rows);

  std::int64_t nbytes() const;  // of the search copy, on the device

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace mmad
