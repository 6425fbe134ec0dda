// Work of a whole warp: sums, exact distances, and a sorted list with one entry per lane.
#pragma once

#include "cuda/device.cuh"

namespace mmad::cuda {

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {  // of values that are not negative
  return bit_cast<float>(__reduce_max_sync(kFullWarp, bit_cast<unsigned>(value)));
}

// Squared distances from differences in float64: what decides between contenders. Every kernel uses this one function,
// with its fused multiply-adds spelt out, so that equal rows have equal distances wherever they are computed. The lanes
// take columns in turn, four at a time where `dim` allows, in two sums, as additions to one sum wait for each other; all
// lanes receive the totals. Several rows b are read together.
template <int kRows>
__device__ __forceinline__ void exact_squared_distances(const float* a, const float* const (&b)[kRows], int dim,
                                                        double (&totals)[kRows]) {
  double sums[kRows][2] = {};
  const auto add = [&sums](int row, int which, float x, float y) {
    const double difference = static_cast<double>(x) - static_cast<double>(y);
    sums[row][which] = fma(difference, difference, sums[row][which]);
  };
  if (dim % 4 == 0) {  // then all rows are aligned to 16 bytes
    for (int i = lane_id() * 4; i < dim; i += kWarp * 4) {
      const float4 x = *reinterpret_cast<const float4*>(a + i);
      float4 y[kRows];
#pragma unroll
      for (int j = 0; j < kRows; ++j) y[j] = *reinterpret_cast<const float4*>(b[j] + i);
#pragma unroll
      for (int j = 0; j < kRows; ++j) {
        add(j, 0, x.x, y[j].x);
        add(j, 1, x.y, y[j].y);
        add(j, 0, x.z, y[j].z);
        add(j, 1, x.w, y[j].w);
      }
    }
  } else {
    for (int i = lane_id(); i < dim; i += kWarp) {
#pragma unroll
      for (int j = 0; j < kRows; ++j) add(j, 0, a[i], b[j][i]);
    }
  }
#pragma unroll
  for (int j = 0; j < kRows; ++j) totals[j] = warp_sum(sums[j][0] + sums[j][1]);
}

__device__ __forceinline__ double exact_squared_distance(const float* a, const float* b, int dim) {
  const float* const rows[1] = {b};
  double total[1];
  exact_squared_distances(a, rows, dim, total);
  return total[0];
}

// A float32 sum of D squared differences, each lane adding at most D / 32 + 4 of them before five more additions, is
// within this relative error of the exact one (2 u for the difference and its square, u for every addition) as long as
// nothing overflows or underflows.
__device__ __forceinline__ float difference_error(int dim) {
  return static_cast<float>(dim / kWarp + 16) * (1.0f / 16777216.0f);
}

// True unless the float32 sum proves that the exact squared distance is above `limit`.
__device__ __forceinline__ bool may_be_within(float screened, float relative_error, double limit) {
  if (!(screened < 1e38f)) return true;  // overflow: the screening says nothing
  return static_cast<double>(screened) * (1.0 - static_cast<double>(relative_error)) - 1e-30 <= limit;
}

// The k <= 32 smallest (distance, row) pairs seen, sorted, entry j in lane j.
struct LaneList {
  double distance;
  int row;

  __device__ __forceinline__ void clear() {
    distance = kInfinity64;
    row = 0x7FFFFFFF;
  }

  __device__ __forceinline__ bool before(double d, int r) const { return distance < d || (distance == d && row < r); }

  // The same candidate in all lanes.
  __device__ __forceinline__ void insert(double d, int r) {
    const int place = __popc(__ballot_sync(kFullWarp, before(d, r)));
    const double left_distance = __shfl_up_sync(kFullWarp, distance, 1);
    const int left_row = __shfl_up_sync(kFullWarp, row, 1);
    const int lane = lane_id();
    if (lane == place) {
      distance = d;
      row = r;
    } else if (lane > place) {
      distance = left_distance;
      row = left_row;
    }
  }

  __device__ __forceinline__ double kth_distance(int k) const { return __shfl_sync(kFullWarp, distance, k - 1); }
};

}  // namespace mmad::cuda
