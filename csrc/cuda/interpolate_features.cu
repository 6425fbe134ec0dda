// Inverse-distance interpolation: one warp per point finds its nearest centres, weighs them, and gathers their features
// in the same pass.
#include "cuda/points.cuh"
#include "mmad/cuda_points.hpp"

namespace mmad::cuda {

namespace {

constexpr int kInterpolateWarps = 8;

struct InterpolateTask {
  const float* points;
  std::int64_t count;  // of a cloud's points
  const float* centers;
  std::int64_t center_count;  // of a cloud's centers
  const float* features;
  int clouds;
  int dim;
  int k;
  double power;
  double eps;
  float* output;
};

__device__ LaneList nearest_centers(const InterpolateTask& task, const float* centers, const Point& point) {
  LaneList best;
  best.clear();
  double limit = kInfinity64;
  float limit_above = kInfinity32;
  for (std::int64_t base = 0; base < task.center_count; base += kWarp) {
    const std::int64_t row = base + lane_id();
    double distance = 0.0;
    bool keep = false;
    if (row < task.center_count) {
      const Point center = load_point(centers, row);
      keep = lower_squared(center, point) <= limit_above;
      if (keep) distance = exact_squared(point, center);
    }
    unsigned keepers = __ballot_sync(kFullWarp, keep);
    while (keepers != 0) {  // in rising order of rows, so that an equal distance comes too late
      const int lane = __ffs(static_cast<int>(keepers)) - 1;
      keepers &= keepers - 1;
      const double offered = __shfl_sync(kFullWarp, distance, lane);
      if (!(offered < limit)) continue;
      best.insert(offered, static_cast<int>(base) + lane);
      limit = best.kth_distance(task.k);
      limit_above = float_up(limit);
    }
  }
  return best;
}

// The centre whose features a lane's neighbour has. Where fewer than k centres are at a finite distance, those missing
// stand at an infinite one and weigh nothing; their row is the nearest centre's, so that the gather stays inside, or the
// first where there is none: then all weights are 0 / 0.
__device__ __forceinline__ int row_of(const InterpolateTask& task, const LaneList& best) {
  const int nearest = __shfl_sync(kFullWarp, best.row, 0);
  const int spare = nearest < task.center_count ? nearest : 0;
  return best.row < task.center_count ? best.row : spare;
}

__device__ __forceinline__ double weight_of(double squared, double power, double eps) {
  if (power == 2.0) return 1.0 / (squared + eps);
  if (power == 1.0) return 1.0 / (sqrt(squared) + eps);
  return 1.0 / (pow(squared, 0.5 * power) + eps);
}

__global__ void __launch_bounds__(kInterpolateWarps* kWarp) interpolate_kernel(InterpolateTask task, bool vector) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kInterpolateWarps + warp_id();
  if (index >= task.clouds * task.count) return;
  const std::int64_t first_center = index / task.count * task.center_count;  // the cloud's
  const int lane = lane_id();
  const LaneList best = nearest_centers(task, task.centers + 3 * first_center, load_point(task.points, index));
  double weight = lane < task.k ? weight_of(best.distance, task.power, task.eps) : 0.0;
  weight /= warp_sum(weight);
  const float share = static_cast<float>(weight);
  const int neighbor = row_of(task, best);
  float* output = task.output + index * task.dim;
  const int step = vector ? 4 : 1;
  for (int base = 0; base < task.dim; base += kWarp * step) {  // all lanes stay, for the shuffles
    const int column = base + lane * step;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int j = 0; j < task.k; ++j) {
      const float w = __shfl_sync(kFullWarp, share, j);
      const std::int64_t row = first_center + __shfl_sync(kFullWarp, neighbor, j);
      if (column >= task.dim) continue;
      const float* feature = task.features + row * task.dim + column;
      if (vector) {
        const float4 f = *reinterpret_cast<const float4*>(feature);
        sum.x = multiply_add(w, f.x, sum.x);
        sum.y = multiply_add(w, f.y, sum.y);
        sum.z = multiply_add(w, f.z, sum.z);
        sum.w = multiply_add(w, f.w, sum.w);
      } else {
        sum.x = multiply_add(w, *feature, sum.x);
      }
    }
    if (column >= task.dim) continue;
    if (vector) {
      *reinterpret_cast<float4*>(output + column) = sum;
    } else {
      output[column] = sum.x;
    }
  }
}

}  // namespace

void interpolate_features(const float* points, std::int64_t count, const float* centers, std::int64_t center_count,
                          const float* features, int clouds, int dim, int k, double power, double eps, float* output,
                          Stream stream) {
  const InterpolateTask task{points, count, centers, center_count, features, clouds, dim, k, power, eps, output};
  const auto address = reinterpret_cast<std::uintptr_t>(features) | reinterpret_cast<std::uintptr_t>(output);
  const bool vector = dim % 4 == 0 && address % 16 == 0;
  launch("interpolate_features", interpolate_kernel, dim3(blocks_for(clouds * count, kInterpolateWarps)),
         kInterpolateWarps * kWarp, 0, stream, Launch::kPlain, task, vector);
}

}  // namespace mmad::cuda
