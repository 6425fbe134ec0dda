// Nearest neighbours among 3-D points on the CPU: the grouping step of point cloud networks.
#pragma once

#include <cstdint>

#include "mmad/matrix.hpp"

namespace mmad {

// indices[g * k ...] receives the k rows of `points` (columns x, y, z) nearest to row g of `centers`, nearest first,
// equal distances by lowest row. Requires 1 <= k <= points.rows.
void knn_group(Matrix<const float> points, Matrix<const float> centers, std::int64_t k, int threads,
               std::int64_t* indices);

}  // namespace mmad
