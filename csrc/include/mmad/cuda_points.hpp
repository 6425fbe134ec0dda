// Point cloud operations on the GPU: sampling, grouping, interpolation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mmad/cuda_device.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

constexpr int kLargestGroup = 128;         // neighbours of knn_group
constexpr int kLargestInterpolation = 32;  // neighbours of interpolate_features

// Farthest point sampling of a batch of clouds. `points` are packed xyz rows (device); cloud b is the `sizes[b]` rows from
// `first_rows[b]` (device arrays), `largest` its largest size and `points_in_all` the number of rows. Points with
// |p|^2 <= floor are left out, `start` excepted. picks: int64 (clouds, n_select), rows within the cloud in order of
// selection, as with squared distances in float64, summed in the order x, y, z; ties to the lowest row. Points that are
// not finite are left out too; where too few are left, the last pick comes again.
std::size_t farthest_point_workspace_bytes(std::int64_t points_in_all);
void farthest_point_sample(const float* points, std::int64_t points_in_all, const std::int64_t* first_rows,
                           const std::int64_t* sizes, int clouds, std::int64_t largest, std::int64_t n_select,
                           std::int64_t start, double floor, void* workspace, std::int64_t* picks,
                           const DeviceLimits& limits, Stream stream);

// For each of `clouds` clouds of `count` points, one behind another, and their `center_count` centers: the k <=
// kLargestGroup nearest points of each, nearest first, ties to the lowest row: int64 (clouds, centers, k). A pair without a distance (NaN) counts as none; what is missing for k is the nearest point again, or row 0.
void knn_group(const float* points, std::int64_t count, const float* centers, std::int64_t center_count, int clouds,
               int k, std::int64_t* indices, Stream stream);

// Inverse-distance interpolation over the k <= kLargestInterpolation nearest centres: weights 1 / (d^power + eps) in
// float64, normalized; features (clouds, center_count, dim) gathered and summed in float32: output (clouds, count, dim). A centre that
// is not finite weighs nothing; a point that is not finite, or finds no centre, has NaN.
void interpolate_features(const float* points, std::int64_t count, const float* centers, std::int64_t center_count,
                          const float* features, int clouds, int dim, int k, double power, double eps, float* output,
                          Stream stream);

}  // namespace mmad::cuda
