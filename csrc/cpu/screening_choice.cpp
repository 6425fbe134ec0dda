// Which screening costs least on a bank is measured on a sample of it: rows of the bank as queries, whose nearest others in
// the sample set the limits. Those limits are wider than the whole bank's, as are those of several neighbours, or of
// queries far from the bank. The counts are exact; the costs are rough, and only differences of a third or more matter.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/screen.hpp"
#include "mmad/knn.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kQueries = 48, kColumns = 4096;
// Below, choosing costs more than it saves: engine.py serving has banks of 700 rows.
constexpr std::int64_t kLeastRows = 1024;
constexpr std::int64_t kMostDims = 256;
constexpr std::int64_t kLeastShare = 2;  // a coarse level with more than D / 2 coordinates saves nothing

// In products of two bytes.
struct Costs {
  double byte;           // in a tile
  double other;          // of the format that "auto" takes instead, in a tile
  double screen = 40.0;  // screening the result of a pair
  double pair = 5.0;     // in pairs, and per pair
  double visit = 4500.0;
  double exact = 20.0;  // differences of original rows, and per pair, which comes from memory
  double fetch = 5000.0;

  explicit Costs(Isa isa) : byte(isa >= Isa::amx ? 0.5 : 1.0), other(isa >= Isa::amx ? 1.1 : 1.9) {
    if (row_format(Format::fixed8, isa) == Format::signed7) other = 1.25;
    if (isa == Isa::generic) other = 0.7;
  }
};

struct Sample {
  Matrix<const float> columns, queries;  // query i is column i * spacing
  std::int64_t spacing;
  std::vector<double> limits;  // squared distance of each query to its nearest other column

  Sample(Matrix<const float> bank, int threads) {
    const std::int64_t step = std::max<std::int64_t>(1, bank.rows / kColumns);
    columns = {bank.data, std::min(bank.rows / step, kColumns), bank.cols, bank.stride * step};
    spacing = std::max<std::int64_t>(1, columns.rows / kQueries);
    queries = {bank.data, std::min(columns.rows / spacing, kQueries), bank.cols, columns.stride * spacing};
    limits.assign(static_cast<std::size_t>(queries.rows), std::numeric_limits<double>::infinity());
    parallel(threads, queries.rows, 1, [&](Items& items) {
      items.each([&](std::int64_t q) {
        for (std::int64_t c = 0; c < columns.rows; ++c) {
          if (c == q * spacing) continue;
          const double high = squared_distance_interval(queries.row(q), columns.row(c), columns.cols).high;
          if (high > 0.0) limits[q] = std::min(limits[q], high);  // copies say nothing about others
        }
      });
    });
  }

  // The share of pairs that a level lets pass, but for the query itself and its nearest.
  double passing(const Rows& rows, const Panels& panels, const Level& level) const {
    const TileSession session(level.kernel);
    TileResult result;
    std::int64_t passed = 0;
    for (std::int64_t q = 0; q < rows.count; q += level.kernel.rows) {
      RowTerms terms[kMaxTileRows];
      const int n = static_cast<int>(std::min<std::int64_t>(level.kernel.rows, rows.count - q));
      for (int i = 0; i < n; ++i) terms[i] = level.terms(rows.bounds, q + i, limits[q + i]);
      for (std::int64_t p = 0; p < panels.panel_count(); p += level.kernel.panels) {
        if (!screen_tile(level, rows, q, terms, n, panels, p, &result)) continue;
        for (int i = 0; i < n; ++i) passed += __builtin_popcount(result.passed[i]);
      }
    }
    return std::max<double>(0.0, static_cast<double>(passed - 2 * rows.count)) /
           static_cast<double>(rows.count * panels.count);
  }
};

Screening best_of_bytes(Matrix<const float> bank, const Sample& sample, const Frame& frame, Isa isa, int threads,
                        const Costs& costs, double* least) {
  const double unit = frame.unit();
  const auto dim = static_cast<double>(bank.cols);
  const TileKernel kernel = tile_kernel(Format::fixed8, isa);
  const Format rows_format = row_format(Format::fixed8, isa);
  const double exact = sample.passing(round_rows(sample.queries, frame, rows_format, threads),
                                      pack_rows(sample.columns, frame, Format::fixed8, threads), {kernel, 0.0f, unit}) *
                       (costs.exact * dim + costs.fetch);
  Screening best{Format::fixed8, 0};
  *least = costs.byte * dim + costs.screen + exact;
  for (std::int64_t dims = 64; dims <= kMostDims && dims * kLeastShare <= bank.cols; dims *= 2) {
    const Subspace subspace = leading_subspace(bank, frame, dims, threads);
    const double left = sample.passing(project_rows(sample.queries, frame, subspace, rows_format, isa, threads),
                                       project_panels(sample.columns, frame, subspace, Format::fixed8, isa, threads),
                                       {kernel, 0.0f, unit, false});
    const double cost =
        2.0 * (costs.byte * static_cast<double>(dims) + costs.screen) + left * (costs.pair * dim + costs.visit) + exact;
    if (cost >= *least) {
      if (best.coarse > 0) break;  // more coordinates cost more than they save
      continue;
    }
    *least = cost;
    best.coarse = dims;
  }
  return best;
}

}  // namespace

Format screening_format(const std::string& precision, Isa isa) {
  const Format half = isa >= Isa::amx ? Format::bfloat16 : Format::fixed16;
  if (precision == "float32") return Format::float32;
  if (precision == "half") return half;
  if (precision == "int8") return Format::fixed8;
  if (precision == "auto") return isa >= Isa::avx2 ? half : Format::float32;
  throw std::invalid_argument("precision: expected auto, float32, half or int8, found '" + precision + "'");
}

Screening choose_screening(Matrix<const float> bank, const std::string& precision, Isa isa, int threads) {
  const Screening plain{screening_format(precision, isa), 0};
  if (bank.rows < kLeastRows || precision == "float32" || precision == "half") return plain;
  const Costs costs(isa);
  double least = 0.0;
  const Screening bytes =
      best_of_bytes(bank, Sample(bank, threads), screening_frame(bank), isa, threads, costs, &least);
  const bool wins = least <= costs.other * static_cast<double>(bank.cols) + costs.screen;
  return wins || plain.format == Format::fixed8 ? bytes : plain;
}

}  // namespace mmad
