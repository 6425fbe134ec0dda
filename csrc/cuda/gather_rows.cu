// Rows of a bank by number, from any memory that the device can read: one warp per row.
#include "cuda/warp.cuh"
#include "mmad/cuda_knn.hpp"

namespace mmad::cuda {

namespace {

constexpr int kGatherWarps = 8;

__global__ void __launch_bounds__(kGatherWarps* kWarp)
    gather_kernel(const float* rows, std::int64_t row_count, int dim, const std::int64_t* indices, std::int64_t count,
                  float* output) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kGatherWarps + warp_id();
  if (index >= count) return;
  const std::int64_t row = indices[index];
  const bool known = row >= 0 && row < row_count;
  const float* source = rows + (known ? row * dim : 0);
  float* target = output + index * dim;
  if (dim % 4 == 0 && known) {  // then both are aligned to 16 bytes
    for (int i = lane_id() * 4; i < dim; i += kWarp * 4) {
      *reinterpret_cast<float4*>(target + i) = *reinterpret_cast<const float4*>(source + i);
    }
  } else {
    for (int i = lane_id(); i < dim; i += kWarp) target[i] = known ? source[i] : kNaN32;
  }
}

}  // namespace

void gather_rows(const float* rows, std::int64_t row_count, int dim, const std::int64_t* indices, std::int64_t count,
                 float* output, Stream stream) {
  launch("gather_rows", gather_kernel, dim3(blocks_for(count, kGatherWarps)), kGatherWarps * kWarp, 0, stream,
         Launch::kPlain, rows, row_count, dim, indices, count, output);
}

}  // namespace mmad::cuda
