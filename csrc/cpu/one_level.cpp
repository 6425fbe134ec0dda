// The search on one level: tiles of whole rows.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/search_levels.hpp"

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class OneLevel final : public SearchLevels {
 public:
  OneLevel(Matrix<const float> bank, Format format, Isa isa, int threads)
      : frame_(screening_frame(bank)),
        rows_format_(row_format(format, isa)),
        panels_(pack_rows(bank, frame_, format, threads)),
        whole_(bank, frame_, format, isa) {}

  ScreenRows round(Matrix<const float> queries, int threads) const override {
    return {round_rows(queries, frame_, rows_format_, threads), {}};
  }

  void scan(Matrix<const float> queries, const ScreenRows& rows, const Part& part, Findings* findings,
            Items& items) const override {
    const TileKernel& kernel = whole_.level.kernel;
    const std::int64_t count = part.to - part.from, columns = kernel.panels * kPanelWidth;
    std::vector<RowTerms> terms;
    for (std::int64_t q = part.from; q < part.to; ++q)
      terms.push_back(whole_.level.terms(rows.full.bounds, q, kInfinity));
    PanelsAhead ahead(panels_, kernel.panels * panels_.panel_bytes(), (count + kernel.rows - 1) / kernel.rows);
    TileResult result;
    for (std::int64_t p = part.first; p < part.last; p += kernel.panels) {
      items.check();
      ahead.start(panels_.panel(p + kernel.panels));
      for (std::int64_t r = 0; r < count; r += kernel.rows) {
        ahead.fetch();
        const int n = static_cast<int>(std::min<std::int64_t>(kernel.rows, count - r));
        if (!screen_tile(whole_.level, rows.full, part.from + r, &terms[r], n, panels_, p, &result)) continue;
        for (int i = 0; i < n; ++i) {
          const std::int64_t q = part.from + r + i;
          Findings& found = findings[r + i];
          for (std::uint32_t bits = result.passed[i]; bits != 0; bits &= bits - 1) {
            const int j = __builtin_ctz(bits);
            const std::int64_t row = p * kPanelWidth + j;
            if (row >= panels_.count) break;
            const float lower = result.lower[i * columns + j];
            whole_.take(queries, rows.full.bounds, q, terms[r + i], panels_.bounds, row, lower, &found);
          }
          if (result.passed[i] != 0) whole_.level.set_limit(rows.full.bounds, q, found.limit(), &terms[r + i]);
        }
      }
    }
  }

  const TileKernel& kernel() const override { return whole_.level.kernel; }
  std::int64_t panels() const override { return panels_.panel_count(); }
  std::int64_t row_bytes() const override { return panels_.depth * bytes_per_value(rows_format_); }
  std::int64_t nbytes() const override {
    return panels_.nbytes() + static_cast<std::int64_t>(frame_.center.size() * sizeof(float));
  }

 private:
  Frame frame_;
  Format rows_format_;
  Panels panels_;
  WholeRows whole_;
};

}  // namespace

std::unique_ptr<SearchLevels> one_level(Matrix<const float> bank, Format format, Isa isa, int threads) {
  return std::make_unique<OneLevel>(bank, format, isa, threads);
}

WholeRows::WholeRows(Matrix<const float> bank_, const Frame& frame, Format format, Isa isa) : bank(bank_) {
  level = {tile_kernel(format, isa), accumulation_error(format, bank.cols + kDepthStep), frame.unit()};
}

// What the lower bound leaves out is put back, and the product of the rounded rows is left, give or take the slacks, the
// accumulation, and the rounding of what was taken away. Both bounds hold.
Interval WholeRows::interval(const RowBounds& rows, std::int64_t q, const RowTerms& terms, const RowBounds& columns,
                             std::int64_t row, float lower) const {
  constexpr double kRounding = 8.0 / (1 << 24);
  const double norm = rows.norm[q], column_norm = columns.norm[row];
  const double residual = rows.residual[q], column_residual = columns.residual[row];
  const double taken = terms.norm_factor * column_norm + terms.residual_factor * column_residual;
  const double product = lower + taken - columns.base(row);  // -2 <q^, m^>
  const double error = static_cast<double>(rows.slack[q]) + columns.slack[row] +
                       2.0 * level.gamma * norm * column_norm + kRounding * taken;
  const double rounded = product + rows.rounded[q] + columns.rounded[row], apart = residual + column_residual;
  const double least = std::max(0.0, std::sqrt(std::max(0.0, rounded - error)) - apart);
  const double most = std::sqrt(std::max(0.0, rounded + error)) + apart;
  const double squared = product + rows.squared[q] + columns.squared[row];
  const double half = error + 2.0 * (residual * column_norm + norm * column_residual);
  return {std::max(least * least, squared - half) / level.unit, std::min(most * most, squared + half) / level.unit};
}

// A wide interval is computed from the original rows at once, because the limit that it would leave lets many others
// pass. So equal rows are told exactly: patches without a measurement are all the same vector, in the bank and among the
// queries, and an interval around 0 would let each of them stay a candidate.
Interval WholeRows::squared_distance(Matrix<const float> queries, const RowBounds& rows, std::int64_t q,
                                     const RowTerms& terms, const RowBounds& columns, std::int64_t row,
                                     float lower) const {
  constexpr double kWide = 0.125;  // of the upper bound
  const Interval squared = interval(rows, q, terms, columns, row, lower);
  if (squared.high - squared.low <= kWide * squared.high) return squared;
  return squared_distance_interval(queries.row(q), bank.row(row), bank.cols);
}

void WholeRows::take(Matrix<const float> queries, const RowBounds& rows, std::int64_t q, const RowTerms& terms,
                     const RowBounds& columns, std::int64_t row, float lower, Findings* findings) const {
  const Interval squared = squared_distance(queries, rows, q, terms, columns, row, lower);
  if (findings->add(squared, row)) findings->settle(bank, queries.row(q));
}

}  // namespace mmad
