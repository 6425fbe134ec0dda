#include "mmad/knn_group.hpp"

#include <algorithm>

#include "cpu/parallel.hpp"
#include "cpu/point_tree.hpp"

namespace mmad {
namespace {

// Leaves of about k points: smaller ones cost more bounds than they save distances, larger ones the reverse.
std::int64_t leaf_size(std::int64_t k) { return std::clamp<std::int64_t>((k + 15) / 16 * 16, 32, 128); }

}  // namespace

void knn_group(Matrix<const float> points, Matrix<const float> centers, std::int64_t k, int threads,
               std::int64_t* indices) {
  const PointTree tree(points, leaf_size(k));
  parallel(threads, centers.rows, 16, [&](Items& items) {
    NearestSearch nearest;
    items.each([&](std::int64_t g) {
      nearest.run(tree, point_at(centers, g), k);
      for (std::int64_t j = 0; j < k; ++j) indices[g * k + j] = nearest.found[j].second;
    });
  });
}

}  // namespace mmad
