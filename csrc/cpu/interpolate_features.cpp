// Neighbours, weights, gather and weighted sum in one pass over the points: the N x k tables are never written.
#include "mmad/interpolate_features.hpp"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.hpp"
#include "cpu/point_tree.hpp"
#include "mmad/cpu_features.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kLeafSize = 16;
constexpr std::int64_t kChunk = 256;  // points that a thread takes at a time: neighbours in a raster scan

double raise_squared(double squared, double power) {
  if (power == 2.0) return squared;
  if (power == 1.0) return std::sqrt(squared);
  return std::pow(squared, power / 2.0);
}

// The k nearest centres of one point after the other. Scans of a surface visit neighbours in turn, so the farthest of
// the last point's centres, measured from the new point, is a tight limit for its search.
struct Neighbours {
  const PointTree& tree;
  Matrix<const float> centers;
  const InverseDistance& rule;
  NearestSearch nearest;
  std::vector<std::int64_t> index;
  std::vector<float> weight;

  Neighbours(const PointTree& tree_, Matrix<const float> centers_, const InverseDistance& rule_)
      : tree(tree_), centers(centers_), rule(rule_), index(rule_.k), weight(rule_.k) {}

  void move_to(Point point) {
    double limit = nearest.found.empty() ? std::numeric_limits<double>::max() : 0.0;
    if (!nearest.found.empty()) {
      for (const std::int64_t g : index) limit = std::max(limit, squared_distance(point, point_at(centers, g)));
    }
    nearest.run(tree, point, rule.k, limit);
    double sum = 0.0;
    for (std::int64_t j = 0; j < rule.k; ++j) {
      auto& [value, g] = nearest.found[j];
      index[j] = g;
      value = 1.0 / (raise_squared(value, rule.power) + rule.eps);
      sum += value;
    }
    for (std::int64_t j = 0; j < rule.k; ++j) weight[j] = static_cast<float>(nearest.found[j].first / sum);
  }
};

// Products and sums are rounded one by one on every instruction set, so the results are the same bits on all.
MMAD_INLINE void weighted_sum(Matrix<const float> features, const std::int64_t* index, const float* weight,
                              std::int64_t k, float* output) {
  const std::int64_t dim = features.cols;
  const float* first = features.row(index[0]);
  if (k == 3) {
    const float *second = features.row(index[1]), *third = features.row(index[2]);
    for (std::int64_t d = 0; d < dim; ++d) {
      output[d] = weight[0] * first[d] + weight[1] * second[d] + weight[2] * third[d];
    }
    return;
  }
  for (std::int64_t d = 0; d < dim; ++d) output[d] = weight[0] * first[d];
  for (std::int64_t j = 1; j < k; ++j) {
    const float* row = features.row(index[j]);
    for (std::int64_t d = 0; d < dim; ++d) output[d] += weight[j] * row[d];
  }
}

using WeightedSum = void (*)(Matrix<const float>, const std::int64_t*, const float*, std::int64_t, float*);

void weighted_sum_generic(Matrix<const float> features, const std::int64_t* index, const float* weight, std::int64_t k,
                          float* output) {
  weighted_sum(features, index, weight, k, output);
}

#if defined(__x86_64__)
MMAD_TARGET_AVX2 void weighted_sum_avx2(Matrix<const float> features, const std::int64_t* index, const float* weight,
                                        std::int64_t k, float* output) {
  weighted_sum(features, index, weight, k, output);
}
#endif

WeightedSum choose_weighted_sum() {
#if defined(__x86_64__)
  if (active_isa() >= Isa::avx2) return weighted_sum_avx2;
#endif
  return weighted_sum_generic;
}

// k = all centres: nothing to search.
void weigh_all(Matrix<const float> points, Matrix<const float> centers, const InverseDistance& rule, int threads,
               Matrix<float> weights) {
  parallel(threads, points.rows, kChunk, [&](Items& items) {
    std::vector<double> value(centers.rows);
    items.each([&](std::int64_t n) {
      const Point point = point_at(points, n);
      double sum = 0.0;
      for (std::int64_t g = 0; g < centers.rows; ++g) {
        value[g] = 1.0 / (raise_squared(squared_distance(point, point_at(centers, g)), rule.power) + rule.eps);
        sum += value[g];
      }
      for (std::int64_t g = 0; g < centers.rows; ++g) weights.row(n)[g] = static_cast<float>(value[g] / sum);
    });
  });
}

template <typename Visit>
void for_each_point(Matrix<const float> points, Matrix<const float> centers, const InverseDistance& rule, int threads,
                    const Visit& visit) {
  const PointTree tree(centers, kLeafSize);
  parallel(threads, points.rows, kChunk, [&](Items& items) {
    Neighbours neighbours(tree, centers, rule);
    items.each([&](std::int64_t n) {
      neighbours.move_to(point_at(points, n));
      visit(n, neighbours);
    });
  });
}

}  // namespace

void interpolation_weights(Matrix<const float> points, Matrix<const float> centers, const InverseDistance& rule,
                           int threads, Matrix<float> weights) {
  if (rule.k == centers.rows) return weigh_all(points, centers, rule, threads, weights);
  for_each_point(points, centers, rule, threads, [&](std::int64_t n, const Neighbours& neighbours) {
    float* row = weights.row(n);
    std::fill(row, row + weights.cols, 0.0f);
    for (std::int64_t j = 0; j < rule.k; ++j) row[neighbours.index[j]] = neighbours.weight[j];
  });
}

void interpolate_features(Matrix<const float> points, Matrix<const float> centers, Matrix<const float> features,
                          const InverseDistance& rule, int threads, Matrix<float> output) {
  const WeightedSum sum = choose_weighted_sum();
  for_each_point(points, centers, rule, threads, [&](std::int64_t n, const Neighbours& neighbours) {
    sum(features, neighbours.index.data(), neighbours.weight.data(), rule.k, output.row(n));
  });
}

}  // namespace mmad
