#include "cpu/k_center_pool.hpp"

#include <cmath>
#include <limits>

#include "cpu/clones.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tile.hpp"

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// lower[j], for one row against all columns, as TileKernel::screen computes it.
template <typename T>
inline void lower_bounds_body(const T* sums, const RowTerms& row, const ColumnTerms& columns, float* lower,
                              std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    lower[j] = columns.base[j] - row.norm_factor * columns.norm[j] - row.residual_factor * columns.residual[j] -
               row.two_scale * (columns.scale[j] * static_cast<float>(sums[j]));
  }
}
MMAD_CLONES void lower_bounds(const float* sums, const RowTerms& row, const ColumnTerms& columns, float* lower,
                              std::int64_t n) {
  lower_bounds_body(sums, row, columns, lower, n);
}
MMAD_CLONES void lower_bounds(const std::int32_t* sums, const RowTerms& row, const ColumnTerms& columns, float* lower,
                              std::int64_t n) {
  lower_bounds_body(sums, row, columns, lower, n);
}

}  // namespace

MMAD_CLONES bool PoolProducts::any_reaches(const float* lower, const PickTerms& pick, const ColumnTerms& columns,
                                           const ColumnLimits& limits, std::int64_t from, std::int64_t to) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (std::int64_t j = from; j < to; ++j) any |= reaches(lower, pick, columns, limits, j);
  return any != 0;
}

void PoolProducts::multiply(const std::vector<std::int64_t>& pool, const Rows& rows, const Level& level, int threads) {
  level_ = &level;
  rows_ = &rows;
  const auto n = static_cast<std::int64_t>(pool.size());
  panels_ = Panels();
  panels_.reserve(n, rows.dim, rows.format);
  for (const std::int64_t i : pool) panels_.append(rows, i);
  const TileKernel& kernel = level.kernel;
  const std::int64_t columns = kernel.panels * kPanelWidth;
  stride_ = (n + columns - 1) / columns * columns;
  const std::int64_t tiles = (n + kernel.rows - 1) / kernel.rows;
  products_.resize(static_cast<std::size_t>(tiles * kernel.rows * stride_));
  lower_.resize(static_cast<std::size_t>(stride_));
  squared_.assign(lower_.size(), kMinusInfinity);
  within_.assign(lower_.size(), 0.0f);
  const std::int64_t bytes = rows.row_bytes();
  parallel(threads, tiles, equal_chunk(tiles, threads), [&](Items& items) {
    std::vector<std::uint8_t> values(static_cast<std::size_t>(kernel.rows * bytes));
    alignas(64) float tile[kMaxTileRows * kMaxTileColumns];
    const TileSession session(kernel);
    items.each([&](std::int64_t t) {
      for (int r = 0; r < kernel.rows; ++r) {
        std::copy_n(rows.row(pool[std::min(n - 1, t * kernel.rows + r)]), bytes, values.data() + r * bytes);
      }
      for (std::int64_t p = 0; p * kPanelWidth < stride_; p += kernel.panels) {
        kernel.multiply(values.data(), bytes, panels_.panel(p), panels_.panel_bytes(), rows.depth, tile);
        for (int r = 0; r < kernel.rows; ++r) {
          std::copy_n(tile + r * columns, columns, row(t * kernel.rows + r) + p * kPanelWidth);
        }
      }
    });
  });
}

PoolProducts::PickTerms PoolProducts::start_visit(std::int64_t at, std::int64_t pick) {
  const RowTerms terms = level_->terms(rows_->bounds, pick, kInfinity);
  const ColumnTerms columns = column_terms(panels_, 0);
  if (rows_->format == Format::fixed16) {
    lower_bounds(reinterpret_cast<const std::int32_t*>(row(at)), terms, columns, lower_.data(), stride_);
  } else {
    lower_bounds(row(at), terms, columns, lower_.data(), stride_);
  }
  const RowBounds& bounds = rows_->bounds;
  return {bounds.rounded[pick] - bounds.slack[pick], bounds.squared[pick] - bounds.slack[pick],
          2.0f * bounds.residual[pick], 2.0f * bounds.norm[pick]};
}

void PoolProducts::set_limit(std::int64_t p, std::int64_t i, double squared) {
  const double by_product = level_->by_product ? level_->framed(squared) : kReach;
  squared_[p] = std::nextafter(static_cast<float>(by_product), std::numeric_limits<float>::infinity());
  within_[p] = static_cast<float>(level_->reach(rows_->bounds, i, squared));
}

void PoolProducts::rule_out(std::int64_t p) { squared_[p] = kMinusInfinity; }

}  // namespace mmad
