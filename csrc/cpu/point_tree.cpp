#include "cpu/point_tree.hpp"

#include <algorithm>
#include <numeric>

#include "mmad/cpu_features.hpp"

namespace mmad {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Entry {
  float p[3];
  std::int64_t row;
};

int widest_axis(const Entry* first, const Entry* last) {
  float extent[3];
  for (int axis = 0; axis < 3; ++axis) {
    float low = first->p[axis], high = low;
    for (const Entry* e = first; e != last; ++e) {
      low = std::min(low, e->p[axis]);
      high = std::max(high, e->p[axis]);
    }
    extent[axis] = high - low;
  }
  return static_cast<int>(std::max_element(extent, extent + 3) - extent);
}

// Reorders the entries so that runs of `leaf_size` are neighbours in space, each in rising order of row.
void split(Entry* first, Entry* last, std::int64_t leaf_size) {
  const std::int64_t leaves = (last - first + leaf_size - 1) / leaf_size;
  if (leaves <= 1) {
    std::sort(first, last, [](const Entry& a, const Entry& b) { return a.row < b.row; });
    return;
  }
  const int axis = widest_axis(first, last);
  Entry* middle = first + leaves / 2 * leaf_size;
  std::nth_element(first, middle, last, [axis](const Entry& a, const Entry& b) { return a.p[axis] < b.p[axis]; });
  split(first, middle, leaf_size);
  split(middle, last, leaf_size);
}

std::vector<std::int64_t> all_rows(std::int64_t n) {
  std::vector<std::int64_t> rows(n);
  std::iota(rows.begin(), rows.end(), std::int64_t{0});
  return rows;
}

// Candidates are written and counted without branches: which of them pass is as good as random.
template <int kMany>
MMAD_INLINE std::int64_t append_within(const DoubleLanes& squared, double limit, const std::int64_t (&index)[kMany],
                                       NearestSearch::Candidate* to) {
  std::int64_t count = 0;
  for (int lane = 0; lane < kMany; ++lane) {
    to[count] = {squared[lane], index[lane]};
    count += squared[lane] <= limit;
  }
  return count;
}

// Leaves whose box comes within the limit.
MMAD_INLINE void leaves_within(const PointTree& tree, const Point& query, double limit,
                               std::vector<NearestSearch::Candidate>& leaves) {
  leaves.resize(tree.n_leaves);
  std::int64_t count = 0;
  for (std::int64_t leaf = 0; leaf < tree.n_leaves; leaf += kLanes) {
    DoubleLanes bound;
    box_distance_lanes(tree, leaf, query, bound);
    count += append_within<kLanes>(bound, limit, {leaf, leaf + 1, leaf + 2, leaf + 3}, leaves.data() + count);
  }
  leaves.resize(count);
}

// Appends the points of a leaf that lie within the limit.
MMAD_INLINE void points_within(const PointTree& tree, std::int64_t leaf, const Point& query, double limit,
                               std::vector<NearestSearch::Candidate>& found) {
  std::size_t count = found.size();
  found.resize(count + tree.leaf_size);
  for (std::int64_t i = leaf * tree.leaf_size; i < (leaf + 1) * tree.leaf_size; i += kLanes) {
    DoubleLanes squared;
    distance_lanes(&tree.x[i], &tree.y[i], &tree.z[i], query, squared);
    const std::int64_t* index = &tree.index[i];
    count += append_within<kLanes>(squared, limit, {index[0], index[1], index[2], index[3]}, found.data() + count);
  }
  found.resize(count);
}

// Visits leaves in the order of their lower bounds until the next one lies beyond the k-th best. `found` keeps every
// candidate up to the limit (equal ones included: the lowest index decides) and is cut back to k when it has doubled.
MMAD_INLINE void search(NearestSearch& work, const PointTree& tree, const Point& query, std::size_t k, double limit) {
  auto& [leaves, found] = work;
  found.clear();
  leaves_within(tree, query, limit, leaves);
  const auto farther = [](const auto& a, const auto& b) { return a.first > b.first; };
  std::make_heap(leaves.begin(), leaves.end(), farther);
  std::size_t cut_at = k;
  while (!leaves.empty() && leaves.front().first <= limit) {
    const std::int64_t leaf = leaves.front().second;
    std::pop_heap(leaves.begin(), leaves.end(), farther);
    leaves.pop_back();
    points_within(tree, leaf, query, limit, found);
    if (found.size() < cut_at) continue;
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end());
    found.resize(k);
    limit = found.back().first;
    cut_at = 2 * k;
  }
  if (found.size() > k) std::nth_element(found.begin(), found.begin() + (k - 1), found.end());
  std::sort(found.begin(), found.begin() + k);
}

void search_generic(NearestSearch& work, const PointTree& tree, const Point& query, std::size_t k, double limit) {
  search(work, tree, query, k, limit);
}

#if defined(__x86_64__)
MMAD_TARGET_AVX2 void search_avx2(NearestSearch& work, const PointTree& tree, const Point& query, std::size_t k,
                                  double limit) {
  search(work, tree, query, k, limit);
}
#endif

}  // namespace

PointTree::PointTree(Matrix<const float> points, std::int64_t leaf_size_)
    : PointTree(points, all_rows(points.rows), leaf_size_) {}

PointTree::PointTree(Matrix<const float> points, const std::vector<std::int64_t>& rows, std::int64_t leaf_size_)
    : leaf_size(leaf_size_) {
  const auto n = static_cast<std::int64_t>(rows.size());
  const std::int64_t used = (n + leaf_size - 1) / leaf_size;
  n_leaves = (used + kLanes - 1) / kLanes * kLanes;
  std::vector<Entry> entries(n);
  for (std::int64_t i = 0; i < n; ++i) {
    const float* p = points.row(rows[i]);
    entries[i] = {{p[0], p[1], p[2]}, rows[i]};
  }
  split(entries.data(), entries.data() + n, leaf_size);

  for (auto* axis : {&x, &y, &z}) axis->assign(slots(), kInfinity);
  index.assign(slots(), -1);
  for (int axis = 0; axis < 3; ++axis) {
    low[axis].assign(n_leaves, kInfinity);
    high[axis].assign(n_leaves, -kInfinity);
  }
  for (std::int64_t i = 0; i < n; ++i) {
    const Entry& e = entries[i];
    x[i] = e.p[0];
    y[i] = e.p[1];
    z[i] = e.p[2];
    index[i] = e.row;
    for (int axis = 0; axis < 3; ++axis) {
      low[axis][i / leaf_size] = std::min(low[axis][i / leaf_size], e.p[axis]);
      high[axis][i / leaf_size] = std::max(high[axis][i / leaf_size], e.p[axis]);
    }
  }
}

void NearestSearch::run(const PointTree& tree, Point query, std::int64_t k, double limit) {
#if defined(__x86_64__)
  static const bool avx2 = active_isa() >= Isa::avx2;
  if (avx2) return search_avx2(*this, tree, query, static_cast<std::size_t>(k), limit);
#endif
  search_generic(*this, tree, query, static_cast<std::size_t>(k), limit);
}

}  // namespace mmad
