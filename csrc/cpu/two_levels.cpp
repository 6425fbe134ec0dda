// The search on two levels, in bytes. Tiles of coordinates in a subspace rule most pairs out; what they leave of a panel is
// multiplied pair by pair with the whole rows, which lie row by row for that.
//
// How much they leave depends on the limits, and limits that sink while the bank is read let several times as many pairs
// pass as the last ones. So the coordinates are multiplied twice: first to find the k rows that seem nearest, whose distances
// then are limits that hardly sink any more.
#include <algorithm>
#include <limits>
#include <utility>

#include "cpu/pairs.hpp"
#include "cpu/search_levels.hpp"

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kMostSeeds =
    kMaxTileColumns;  // beyond so many neighbours the limits sink while the bank is read

class TwoLevels final : public SearchLevels {
 public:
  TwoLevels(Matrix<const float> bank, std::int64_t dims, Isa isa, int threads)
      : isa_(isa),
        frame_(screening_frame(bank)),
        subspace_(leading_subspace(bank, frame_, dims, threads)),
        coarse_(project_panels(bank, frame_, subspace_, Format::fixed8, isa, threads)),
        rows_(round_rows(bank, frame_, Format::fixed8, threads)),
        whole_(bank, frame_, Format::fixed8, isa),
        level_{whole_.level.kernel, 0.0f, whole_.level.unit, false},
        pairs_(pair_kernel(isa)) {
    coarse_.keep_for_screening();
  }

  ScreenRows round(Matrix<const float> queries, int threads) const override {
    const Format format = row_format(Format::fixed8, isa_);
    return {round_rows(queries, frame_, format, threads),
            project_rows(queries, frame_, subspace_, format, isa_, threads)};
  }

  void scan(Matrix<const float> queries, const ScreenRows& rows, const Part& part, Findings* findings,
            Items& items) const override {
    const TileKernel& kernel = level_.kernel;
    const std::int64_t count = part.to - part.from;
    const std::vector<double> limits = first_limits(queries, rows, part, findings->k(), items);
    Terms terms;
    for (std::int64_t q = part.from; q < part.to; ++q) {
      terms.coarse.push_back(level_.terms(rows.coarse.bounds, q, limits[q - part.from]));
      terms.full.push_back(whole_.level.terms(rows.full.bounds, q, limits[q - part.from]));
    }
    PanelsAhead ahead(coarse_, kernel.panels * coarse_.panel_bytes(), (count + kernel.rows - 1) / kernel.rows);
    TileResult result;
    std::vector<Waiting> waiting;
    for (std::int64_t p = part.first; p < part.last; p += kernel.panels) {
      items.check();
      ahead.start(coarse_.panel(p + kernel.panels));
      waiting.clear();
      std::uint32_t wanted = 0;
      for (std::int64_t r = 0; r < count; r += kernel.rows) {
        ahead.fetch();
        const int n = static_cast<int>(std::min<std::int64_t>(kernel.rows, count - r));
        if (!screen_tile(level_, rows.coarse, part.from + r, &terms.coarse[r], n, coarse_, p, &result)) continue;
        for (int i = 0; i < n; ++i) {
          if (result.passed[i] == 0) continue;
          fetch(p * kPanelWidth, result.passed[i] & ~wanted);
          wanted |= result.passed[i];
          waiting.push_back({r + i, result.passed[i]});
        }
      }
      for (const Waiting& pairs : waiting) {
        meet(queries, rows, part.from + pairs.r, p * kPanelWidth, pairs.passed, limits[pairs.r], &terms.full[pairs.r],
             &terms.coarse[pairs.r], &findings[pairs.r]);
      }
    }
  }

  const TileKernel& kernel() const override { return level_.kernel; }
  std::int64_t panels() const override { return coarse_.panel_count(); }
  std::int64_t row_bytes() const override { return coarse_.depth; }
  std::int64_t nbytes() const override {
    const auto floats = frame_.center.size() + subspace_.rest.size();
    return coarse_.nbytes() + subspace_.directions.nbytes() + rows_.bounds.nbytes() +
           static_cast<std::int64_t>(rows_.values.size() + floats * sizeof(float));
  }

 private:
  struct Waiting {
    std::int64_t r;
    std::uint32_t passed;
  };
  struct Terms {
    std::vector<RowTerms> coarse, full;
  };

  // The rows that some query of the block will meet.
  void fetch(std::int64_t first, std::uint32_t wanted) const {
    for (; wanted != 0; wanted &= wanted - 1) {
      const std::int64_t row = first + __builtin_ctz(wanted);
      if (row >= rows_.count) return;
      for (std::int64_t at = 0; at < rows_.depth; at += kCacheLine) __builtin_prefetch(rows_.row(row) + at, 0, 2);
    }
  }

  // For each query a squared distance that k of the part's rows do not exceed: that of the k rows which are nearest by
  // their rounded coordinates. Infinity where it is not worth the work.
  std::vector<double> first_limits(Matrix<const float> queries, const ScreenRows& rows, const Part& part,
                                   std::int64_t k, Items& items) const {
    const std::int64_t count = part.to - part.from;
    std::vector<double> limits(static_cast<std::size_t>(count), kInfinity);
    const std::int64_t available = std::min(coarse_.count, part.last * kPanelWidth) - part.first * kPanelWidth;
    if (k > kMostSeeds || k > available) return limits;
    const std::vector<Near> nearest = nearest_coarsely(rows, part, k, items);
    for (std::int64_t r = 0; r < count; ++r) {
      const std::uint8_t* columns[kMaxTileColumns];
      std::int32_t sums[kMaxTileColumns];
      for (std::int64_t i = 0; i < k; ++i) columns[i] = rows_.row(nearest[r * k + i].second);
      const std::int64_t q = part.from + r;
      pairs_(reinterpret_cast<const std::int8_t*>(rows.full.row(q)), columns, static_cast<int>(k), rows_.depth, sums);
      const RowTerms terms = whole_.level.terms(rows.full.bounds, q, kInfinity);
      limits[r] = 0.0;
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t row = nearest[r * k + i].second;
        const float lower = lower_bound(terms, row, sums[i]);
        const double high = whole_.squared_distance(queries, rows.full.bounds, q, terms, rows_.bounds, row, lower).high;
        limits[r] = std::max(limits[r], high);
      }
    }
    return limits;
  }

  using Near = std::pair<float, std::int64_t>;  // coarse squared distance, without the query's own terms, and row

  // The k rows with the least coarse distances: a heap for each query, the largest first.
  std::vector<Near> nearest_coarsely(const ScreenRows& rows, const Part& part, std::int64_t k, Items& items) const {
    const TileKernel& kernel = level_.kernel;
    const std::int64_t count = part.to - part.from, columns = kernel.panels * kPanelWidth;
    const float far = std::numeric_limits<float>::infinity();
    std::vector<Near> nearest(static_cast<std::size_t>(count * k), Near{far, 0});
    std::vector<RowTerms> terms;
    for (std::int64_t q = part.from; q < part.to; ++q) {
      terms.push_back(level_.terms(rows.coarse.bounds, q, kInfinity));
    }
    PanelsAhead ahead(coarse_, kernel.panels * coarse_.panel_bytes(), (count + kernel.rows - 1) / kernel.rows);
    TileResult result;
    for (std::int64_t p = part.first; p < part.last; p += kernel.panels) {
      items.check();
      ahead.start(coarse_.panel(p + kernel.panels));
      for (std::int64_t r = 0; r < count; r += kernel.rows) {
        ahead.fetch();
        const int n = static_cast<int>(std::min<std::int64_t>(kernel.rows, count - r));
        if (!screen_tile(level_, rows.coarse, part.from + r, &terms[r], n, coarse_, p, &result)) continue;
        for (int i = 0; i < n; ++i) {
          const auto heap = nearest.begin() + (r + i) * k;
          for (std::uint32_t bits = result.passed[i]; bits != 0; bits &= bits - 1) {
            const int j = __builtin_ctz(bits);
            const float lower = result.lower[i * columns + j];
            if (lower >= heap->first || p * kPanelWidth + j >= coarse_.count) continue;
            std::pop_heap(heap, heap + k);
            *(heap + (k - 1)) = {lower, p * kPanelWidth + j};
            std::push_heap(heap, heap + k);
          }
          terms[r + i].threshold = std::min(terms[r + i].threshold, heap->first);
        }
      }
    }
    return nearest;
  }

  // Query q meets the rows from `first` on that the coarse level leaves. A pair must pass both levels.
  void meet(Matrix<const float> queries, const ScreenRows& rows, std::int64_t q, std::int64_t first,
            std::uint32_t passed, double first_limit, RowTerms* terms, RowTerms* coarse_terms,
            Findings* findings) const {
    const std::uint8_t* columns[kMaxTileColumns];
    std::int64_t at[kMaxTileColumns];
    std::int32_t sums[kMaxTileColumns];
    int count = 0;
    for (; passed != 0; passed &= passed - 1) {
      const std::int64_t row = first + __builtin_ctz(passed);
      if (row >= rows_.count) break;
      columns[count] = rows_.row(row);
      at[count++] = row;
    }
    pairs_(reinterpret_cast<const std::int8_t*>(rows.full.row(q)), columns, count, rows_.depth, sums);
    bool found = false;
    for (int i = 0; i < count; ++i) {
      const float lower = lower_bound(*terms, at[i], sums[i]);
      if (!(lower <= terms->threshold)) continue;
      whole_.take(queries, rows.full.bounds, q, *terms, rows_.bounds, at[i], lower, findings);
      found = true;
    }
    if (!found) return;
    const double limit = std::min(first_limit, findings->limit());
    whole_.level.set_limit(rows.full.bounds, q, limit, terms);
    level_.set_limit(rows.coarse.bounds, q, limit, coarse_terms);
  }

  // As TileKernel::screen computes it.
  float lower_bound(const RowTerms& terms, std::int64_t row, std::int32_t sum) const {
    const RowBounds& bounds = rows_.bounds;
    return bounds.base(row) - terms.norm_factor * bounds.norm[row] - terms.residual_factor * bounds.residual[row] -
           terms.two_scale * (bounds.scale[row] * static_cast<float>(sum - terms.offset));
  }

  Isa isa_;
  Frame frame_;
  Subspace subspace_;
  Panels coarse_;
  Rows rows_;
  WholeRows whole_;
  Level level_;
  PairKernel pairs_;
};

}  // namespace

std::unique_ptr<SearchLevels> two_levels(Matrix<const float> bank, std::int64_t dims, Isa isa, int threads) {
  return std::make_unique<TwoLevels>(bank, dims, isa, threads);
}

}  // namespace mmad
