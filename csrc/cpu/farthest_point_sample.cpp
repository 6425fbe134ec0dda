// Bucketed farthest point sampling, exact (the idea of [Han 2023], "QuickFPS", on k-d tree leaves).
//
// Every point keeps its squared distance to the nearest chosen point, every leaf the largest of them. A new choice c
// cannot lower anything in a leaf whose box lies at least that largest value away from c, so the leaf is skipped. After
// j choices the balls that can still improve cover about N / j points: N log n distances in all instead of N n.
#include "mmad/farthest_point_sample.hpp"

#include "cpu/parallel.hpp"
#include "cpu/point_tree.hpp"
#include "mmad/cpu_features.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kLeafSize = 64;
constexpr std::int64_t kBetweenChecks = 64;  // choices between looks at whether the caller still wants them
constexpr double kChosen = -1.0;             // below every squared distance: never the largest again
constexpr std::int64_t kUnknown = -1;

struct Sampler {
  PointTree tree;
  std::vector<double> nearest;     // per slot: squared distance to the nearest chosen point
  std::vector<double> largest;     // per leaf: maximum of `nearest`
  std::vector<std::int64_t> slot;  // per leaf: the first slot that holds the maximum, or kUnknown

  explicit Sampler(PointTree tree_)
      : tree(std::move(tree_)),
        nearest(tree.slots(), kChosen),
        largest(tree.n_leaves, kChosen),
        slot(tree.n_leaves, kUnknown) {
    for (std::int64_t i = 0; i < tree.slots(); ++i) {
      if (tree.index[i] < 0) continue;
      nearest[i] = std::numeric_limits<double>::infinity();
      largest[i / kLeafSize] = nearest[i];
    }
  }
};

MMAD_INLINE double largest_lane(const DoubleLanes& lanes) {
  const double a = lanes[0] > lanes[1] ? lanes[0] : lanes[1];
  const double b = lanes[2] > lanes[3] ? lanes[2] : lanes[3];
  return a > b ? a : b;
}

MMAD_INLINE void update_leaf(Sampler& s, std::int64_t leaf, const Point& chosen) {
  DoubleLanes most = {kChosen, kChosen, kChosen, kChosen};
  for (std::int64_t i = leaf * kLeafSize; i < (leaf + 1) * kLeafSize; i += kLanes) {
    DoubleLanes squared, kept;
    distance_lanes(&s.tree.x[i], &s.tree.y[i], &s.tree.z[i], chosen, squared);
    std::memcpy(&kept, &s.nearest[i], sizeof kept);
    kept = squared < kept ? squared : kept;
    std::memcpy(&s.nearest[i], &kept, sizeof kept);
    most = kept > most ? kept : most;
  }
  s.largest[leaf] = largest_lane(most);
  s.slot[leaf] = kUnknown;
}

MMAD_INLINE void add_choice(Sampler& s, const Point& chosen) {
  for (std::int64_t leaf = 0; leaf < s.tree.n_leaves; leaf += kLanes) {
    DoubleLanes bound, largest;
    box_distance_lanes(s.tree, leaf, chosen, bound);
    std::memcpy(&largest, &s.largest[leaf], sizeof largest);
    const MaskLanes improvable = bound < largest;
    if ((improvable[0] | improvable[1] | improvable[2] | improvable[3]) == 0) continue;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (improvable[lane]) update_leaf(s, leaf + lane, chosen);
    }
  }
}

// Entries of a leaf are in rising order of row, so the first slot that holds the maximum has its lowest row.
MMAD_INLINE std::int64_t first_slot(Sampler& s, std::int64_t leaf) {
  if (s.slot[leaf] == kUnknown) {
    std::int64_t i = leaf * kLeafSize;
    while (s.nearest[i] != s.largest[leaf]) ++i;
    s.slot[leaf] = i;
  }
  return s.slot[leaf];
}

MMAD_INLINE std::int64_t farthest_slot(Sampler& s) {
  DoubleLanes most = {kChosen, kChosen, kChosen, kChosen};
  for (std::int64_t leaf = 0; leaf < s.tree.n_leaves; leaf += kLanes) {
    DoubleLanes largest;
    std::memcpy(&largest, &s.largest[leaf], sizeof largest);
    most = largest > most ? largest : most;
  }
  const double value = largest_lane(most);
  std::int64_t best = kUnknown;
  for (std::int64_t leaf = 0; leaf < s.tree.n_leaves; ++leaf) {
    if (s.largest[leaf] != value) continue;
    const std::int64_t candidate = first_slot(s, leaf);
    if (best == kUnknown || s.tree.index[candidate] < s.tree.index[best]) best = candidate;
  }
  return best;
}

// Takes a chosen slot out of the race. Its leaf is updated here and not left to add_choice(), which would skip it if all
// its distances were 0 already.
MMAD_INLINE Point retire(Sampler& s, std::int64_t slot) {
  const Point chosen = {s.tree.x[slot], s.tree.y[slot], s.tree.z[slot]};
  s.nearest[slot] = kChosen;
  update_leaf(s, slot / kLeafSize, chosen);
  return chosen;
}

MMAD_INLINE void sample(Sampler& s, Point start, std::int64_t n_select, std::int64_t* selected, Items& items) {
  add_choice(s, start);
  for (std::int64_t i = 1; i < n_select; ++i) {
    const std::int64_t slot = farthest_slot(s);
    selected[i] = s.tree.index[slot];
    if (i + 1 == n_select) break;
    if (i % kBetweenChecks == 0) items.check();
    add_choice(s, retire(s, slot));
  }
}

void sample_generic(Sampler& s, Point start, std::int64_t n_select, std::int64_t* selected, Items& items) {
  sample(s, start, n_select, selected, items);
}

#if defined(__x86_64__)
MMAD_TARGET_AVX2 void sample_avx2(Sampler& s, Point start, std::int64_t n_select, std::int64_t* selected,
                                  Items& items) {
  sample(s, start, n_select, selected, items);
}
#endif

std::vector<std::int64_t> eligible_rows(Matrix<const float> cloud, std::int64_t start, double min_norm_sq) {
  std::vector<std::int64_t> rows;
  rows.reserve(cloud.rows);
  for (std::int64_t i = 0; i < cloud.rows; ++i) {
    if (i != start && squared_distance(point_at(cloud, i), {0, 0, 0}) > min_norm_sq) rows.push_back(i);
  }
  return rows;
}

void sample_cloud(Matrix<const float> cloud, std::int64_t n_select, std::int64_t start, double min_norm_sq,
                  std::int64_t* selected, Items& items) {
  selected[0] = start;
  Sampler sampler(PointTree(cloud, eligible_rows(cloud, start, min_norm_sq), kLeafSize));
  const Point first = point_at(cloud, start);
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx2) return sample_avx2(sampler, first, n_select, selected, items);
#endif
  sample_generic(sampler, first, n_select, selected, items);
}

}  // namespace

void farthest_point_sample(const Clouds& clouds, std::int64_t n_select, std::int64_t start, double min_norm_sq,
                           int threads, std::int64_t* selected) {
  parallel(threads, clouds.count, 1, [&](Items& items) {
    items.each([&](std::int64_t b) {
      const Matrix<const float> cloud(clouds.points.row(clouds.first_rows[b]), clouds.lengths[b], 3,
                                      clouds.points.stride);
      sample_cloud(cloud, n_select, start, min_norm_sq, selected + b * n_select, items);
    });
  });
}

}  // namespace mmad
