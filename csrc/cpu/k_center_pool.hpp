// All products of a pool of rows with itself, and which of them a new pick comes near.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/screen.hpp"

namespace mmad {

class PoolProducts {
 public:
  // On one level of a screen, of the rows with these numbers.
  void multiply(const std::vector<std::int64_t>& pool, const Rows& rows, const Level& level, int threads);

  // Calls visit(p) for every p < n whose distance to the pool's row `at`, row `pick`, may be within its limit.
  template <typename Visit>
  void visit_within(std::int64_t at, std::int64_t pick, std::int64_t n, const Visit& visit) {
    const PickTerms own = start_visit(at, pick);
    const ColumnTerms columns = column_terms(panels_, 0);
    const ColumnLimits limits{squared_.data(), within_.data()};
    constexpr std::int64_t kStride = 64;
    for (std::int64_t from = 0; from < n; from += kStride) {
      const std::int64_t to = std::min(n, from + kStride);
      if (!any_reaches(lower_.data(), own, columns, limits, from, to)) continue;
      for (std::int64_t p = from; p < to; ++p) {
        if (reaches(lower_.data(), own, columns, limits, p)) visit(p);
      }
    }
  }

  // The limit of the pool's p-th row, which is row i.
  void set_limit(std::int64_t p, std::int64_t i, double squared);
  void rule_out(std::int64_t p);

 private:
  // The limits of columns, L^2 and a, of operand.hpp with the sides exchanged; an L^2 of -infinity is out of reach.
  struct ColumnLimits {
    const float *squared, *within;
  };

  // What one row adds to the bounds of columns.
  struct PickTerms {
    float rounded, squared, two_residual, two_norm;  // the squares less the slack
  };

  // Whether column j may be within its limit, by both bounds; an L^2 of kReach leaves the triangle inequality alone.
  static bool reaches(const float* lower, const PickTerms& pick, const ColumnTerms& columns, const ColumnLimits& limits,
                      std::int64_t j) {
    const float by_triangle = limits.within[j] * (limits.within[j] + pick.two_residual) - pick.rounded;
    const float by_product =
        limits.squared[j] + pick.two_residual * columns.norm[j] + pick.two_norm * columns.residual[j] - pick.squared;
    return lower[j] <= std::min(by_triangle, by_product);
  }
  static bool any_reaches(const float* lower, const PickTerms& pick, const ColumnTerms& columns,
                          const ColumnLimits& limits, std::int64_t from, std::int64_t to);

  float* row(std::int64_t r) { return products_.data() + r * stride_; }
  PickTerms start_visit(std::int64_t at, std::int64_t pick);

  const Level* level_ = nullptr;
  const Rows* rows_ = nullptr;
  Panels panels_;
  std::vector<float> products_;  // int32 where the format is fixed16
  std::vector<float> lower_;
  std::vector<float> squared_, within_;  // the limits, padded to the stride
  std::int64_t stride_ = 0;
};

}  // namespace mmad
