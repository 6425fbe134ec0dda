// Buckets of neighbouring 3-D points with their bounding boxes: what farthest point sampling and nearest-neighbour
// search of point clouds skip work with.
//
// Every distance is the float64 value of ((px - cx)^2 + (py - cy)^2) + (pz - cz)^2 on float32 coordinates, in this order
// and without fused operations, as the reference computes it. Rounding is monotone: for a point inside a box,
// |p - c| >= max(lo - c, c - hi, 0) holds for the rounded values too, and squares and sums keep the order. So
// box_distance() never exceeds distance() of a point inside, bit for bit, and pruning with it needs no safety margin.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "mmad/matrix.hpp"

#if defined(__x86_64__)
// Without "fma": the compiler must not contract a product and a sum, or results would depend on the instruction set.
#define MMAD_TARGET_AVX2 __attribute__((target("avx2")))
#endif
#define MMAD_INLINE inline __attribute__((always_inline))

namespace mmad {

constexpr int kLanes = 4;
typedef float FloatLanes __attribute__((vector_size(4 * kLanes)));
typedef double DoubleLanes __attribute__((vector_size(8 * kLanes)));
typedef std::int64_t MaskLanes __attribute__((vector_size(8 * kLanes)));

struct Point {
  double x, y, z;
};

// A balanced k-d tree cut into equal leaves; only the leaves are kept. Leaf i holds entries [i * leaf_size,
// (i + 1) * leaf_size) of x, y, z and index, in rising order of index; the last leaf is filled up with index -1 and
// infinite coordinates, and the boxes are filled up to whole lanes with boxes at infinity.
struct PointTree {
  std::int64_t leaf_size = 0;
  std::int64_t n_leaves = 0;  // a multiple of kLanes, empty leaves included
  std::vector<float> x, y, z;
  std::vector<std::int64_t> index;
  std::vector<float> low[3], high[3];

  // Takes all rows of `points` (n x 3), or those that `rows` lists; `leaf_size` must be a multiple of kLanes.
  PointTree(Matrix<const float> points, std::int64_t leaf_size);
  PointTree(Matrix<const float> points, const std::vector<std::int64_t>& rows, std::int64_t leaf_size);

  std::int64_t slots() const { return n_leaves * leaf_size; }
};

// Working memory of one thread's searches in a tree.
struct NearestSearch {
  using Candidate = std::pair<double, std::int64_t>;  // squared distance, index: compared in this order
  std::vector<Candidate> leaves, found;

  // The k points nearest to `query`, nearest first, equal distances by lowest index, are left in found[0..k).
  // `limit` is a finite upper bound of the k-th squared distance: the padding at infinity is beyond every limit.
  void run(const PointTree& tree, Point query, std::int64_t k, double limit = std::numeric_limits<double>::max());
};

MMAD_INLINE double squared_distance(Point a, Point b) {
  const double dx = a.x - b.x, dy = a.y - b.y, dz = a.z - b.z;
  return dx * dx + dy * dy + dz * dz;
}

MMAD_INLINE Point point_at(Matrix<const float> points, std::int64_t row) {
  const float* p = points.row(row);
  return {p[0], p[1], p[2]};
}

// The lane helpers write through a reference: vectors returned by value would tie the ABI to the instruction set.
MMAD_INLINE void load_lanes(const float* from, DoubleLanes& lanes) {
  FloatLanes narrow;
  std::memcpy(&narrow, from, sizeof narrow);
  lanes = __builtin_convertvector(narrow, DoubleLanes);
}

MMAD_INLINE void distance_lanes(const float* x, const float* y, const float* z, const Point& c, DoubleLanes& squared) {
  DoubleLanes dx, dy, dz;
  load_lanes(x, dx);
  load_lanes(y, dy);
  load_lanes(z, dz);
  dx -= c.x;
  dy -= c.y;
  dz -= c.z;
  squared = dx * dx + dy * dy + dz * dz;
}

MMAD_INLINE void outside_lanes(const float* low, const float* high, double c, DoubleLanes& outside) {
  const DoubleLanes zero = {};
  DoubleLanes below, above;
  load_lanes(low, below);
  load_lanes(high, above);
  below = below - c;
  above = c - above;
  outside = below > above ? below : above;
  outside = outside > zero ? outside : zero;
}

// Lower bounds of the squared distances from `c` to the points of leaves [leaf, leaf + kLanes).
MMAD_INLINE void box_distance_lanes(const PointTree& tree, std::int64_t leaf, const Point& c, DoubleLanes& squared) {
  DoubleLanes dx, dy, dz;
  outside_lanes(&tree.low[0][leaf], &tree.high[0][leaf], c.x, dx);
  outside_lanes(&tree.low[1][leaf], &tree.high[1][leaf], c.y, dy);
  outside_lanes(&tree.low[2][leaf], &tree.high[2][leaf], c.z, dz);
  squared = dx * dx + dy * dy + dz * dz;
}

}  // namespace mmad
