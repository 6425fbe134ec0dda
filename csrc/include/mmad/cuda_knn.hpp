// Exact k-nearest-neighbour search on the GPU: a bfloat16 product screens, float64 differences decide.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mmad/cuda_device.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

// A bank ready for search. `rows` are the original float32 rows, contiguous, in any memory the device can read: device
// memory, or page-locked host memory where the device is short of it. If dim is a multiple of 4 they must be aligned to
// 16 bytes.
struct KnnBank {
  Operand operand;
  const float* rows = nullptr;
  const float* center = nullptr;  // the vector that was subtracted before rounding
};

struct KnnPlan {
  int splits = 1;       // blocks that share a query tile
  int last_splits = 1;  // blocks that share the last one
  int capacity = 0;     // candidates kept per query and split
  std::size_t workspace_bytes = 0;
};

KnnPlan plan_knn(std::int64_t queries, const Operand& bank, int k, const DeviceLimits& limits);

// The k nearest bank rows of each query, nearest first, ties to the lowest row, as sorting float64 distances would give:
// distances float32 and indices int64 are (count, k). A pass over the bank finds 32 of them, the next one the 32 after
// these. `queries` are contiguous device rows, aligned as the bank's. Everything is queued on `stream`; nothing is
// allocated and nobody waits, so the call can be captured in a CUDA graph.
void knn(const float* queries, std::int64_t count, const KnnBank& bank, int k, const KnnPlan& plan,
         const DeviceLimits& limits, void* workspace, float* distances, std::int64_t* indices, Stream stream);

// output[i] = rows[indices[i]], (count, dim): rows of a bank in host memory fetched by the device itself. A row number
// outside the bank gives NaN.
void gather_rows(const float* rows, std::int64_t row_count, int dim, const std::int64_t* indices, std::int64_t count,
                 float* output, Stream stream);

}  // namespace mmad::cuda
