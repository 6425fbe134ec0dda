// The search on one level: tiles of whole rows.
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
            whole_.take(queries, rows.full.bounds, q, panels_.bounds, row, result.lower[i * columns + j], &found);
          }
          if (result.passed[i] != 0)
            terms[r + i].threshold = whole_.level.threshold(rows.full.bounds, q, found.limit());
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

WholeRows::WholeRows(Matrix<const float> bank_, const Frame& frame, Format format, Isa isa)
    : bank(bank_), per_unit_(1.0 / (static_cast<double>(frame.factor) * frame.factor)) {
  level = {tile_kernel(format, isa), accumulation_error(format, bank.cols + kDepthStep),
           static_cast<double>(frame.factor) * frame.factor};
}

Interval WholeRows::interval(const RowBounds& rows, std::int64_t q, const RowBounds& columns, std::int64_t row,
                             float lower) const {
  const double norm = rows.norm[q], column_norm = columns.norm[row];
  const double error = 2.0 * (rows.residual[q] + level.gamma * norm) * column_norm +
                       2.0 * norm * columns.residual[row] + columns.slack[row] + rows.slack[q];
  const double low = static_cast<double>(lower) + rows.squared[q] - rows.slack[q];
  return {low * per_unit_, (low + 2.0 * error) * per_unit_};
}

// A wide interval is computed from the original rows at once, because the limit that it would leave lets many others
// pass. So equal rows are told exactly: patches without a measurement are all the same vector, in the bank and among the
// queries, and an interval around 0 would let each of them stay a candidate.
Interval WholeRows::squared_distance(Matrix<const float> queries, const RowBounds& rows, std::int64_t q,
                                     const RowBounds& columns, std::int64_t row, float lower) const {
  constexpr double kWide = 0.125;  // of the upper bound
  const Interval squared = interval(rows, q, columns, row, lower);
  if (squared.high - squared.low <= kWide * squared.high) return squared;
  return squared_distance_interval(queries.row(q), bank.row(row), bank.cols);
}

void WholeRows::take(Matrix<const float> queries, const RowBounds& rows, std::int64_t q, const RowBounds& columns,
                     std::int64_t row, float lower, Findings* findings) const {
  const Interval squared = squared_distance(queries, rows, q, columns, row, lower);
  if (findings->add(squared, row)) findings->settle(bank, queries.row(q));
}

}  // namespace mmad
