// Distances of points in space: float32 screens, float64 decides, as in the rest of the core.
#pragma once

#include "cuda/warp.cuh"

namespace mmad::cuda {

struct Point {
  float x, y, z;
};

__device__ __forceinline__ Point load_point(const float* points, std::int64_t row) {
  return {points[3 * row], points[3 * row + 1], points[3 * row + 2]};
}

// float64, rounded after every operation and added in the order x, y, z: the definition that ties are decided by.
__device__ __forceinline__ double sum_of_squares(double dx, double dy, double dz) {
  return __dadd_rn(__dadd_rn(__dmul_rn(dx, dx), __dmul_rn(dy, dy)), __dmul_rn(dz, dz));
}

__device__ __forceinline__ double exact_squared(const Point& a, const Point& b) {
  return sum_of_squares(static_cast<double>(a.x) - static_cast<double>(b.x),
                        static_cast<double>(a.y) - static_cast<double>(b.y),
                        static_cast<double>(a.z) - static_cast<double>(b.z));
}

// A float32 near the exact squared distance: three squares of rounded differences and two additions err by at most
// 5 u < 6e-7 relative (all terms are positive), and by less than 1e-30 where they underflow.
__device__ __forceinline__ float screened_squared(const Point& a, const Point& b) {
  const float dx = a.x - b.x, dy = a.y - b.y, dz = a.z - b.z;
  return multiply_add(dx, dx, multiply_add(dy, dy, dz * dz));
}

// A float32 that is not above the exact squared distance that was screened.
__device__ __forceinline__ float below_screened(float screened) { return multiply_add(screened, 0.999999f, -1e-30f); }

__device__ __forceinline__ float lower_squared(const Point& a, const Point& b) {
  return below_screened(screened_squared(a, b));
}

}  // namespace mmad::cuda
