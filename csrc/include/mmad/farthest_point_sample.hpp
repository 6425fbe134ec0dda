// Farthest point sampling of point clouds on the CPU.
#pragma once

#include <cstdint>

#include "mmad/matrix.hpp"

namespace mmad {

// Cloud b is the `lengths[b]` rows of `points` (columns x, y, z) from row `first_rows[b]` on.
struct Clouds {
  Matrix<const float> points;
  const std::int64_t* first_rows;
  const std::int64_t* lengths;
  std::int64_t count;
};

// selected[b * n_select ...] receives rows of cloud b, counted from its first: `start`, then each time the point
// farthest from those chosen before, the lowest row among equals, no row twice. Points with |p|^2 <= min_norm_sq are not
// chosen (a negative value leaves none out). Requires n_select eligible points in each cloud, `start` counted as one.
void farthest_point_sample(const Clouds& clouds, std::int64_t n_select, std::int64_t start, double min_norm_sq,
                           int threads, std::int64_t* selected);

}  // namespace mmad
