// The CPU kernels without Python, for sanitizers: odd shapes, extreme values, several threads, several callers at once.
//
//     native_checks [rounds] [seed]
//
// Answers are held against plain float64 loops. What is wrong is printed, and makes the exit status 1.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/search_levels.hpp"
#include "mmad/cpu_features.hpp"
#include "mmad/farthest_point_sample.hpp"
#include "mmad/interpolate_features.hpp"
#include "mmad/interrupt.hpp"
#include "mmad/k_center_greedy.hpp"
#include "mmad/k_center_shards.hpp"
#include "mmad/knn.hpp"
#include "mmad/knn_group.hpp"

namespace {

using mmad::Matrix;

constexpr double kTie = 1e-12;  // relative difference of squared distances that float64 sums may have
std::atomic<int> failures{0};

void expect(bool right, const std::string& what) {
  if (right) return;
  ++failures;
  std::printf("wrong: %s\n", what.c_str());
}

struct Rows {
  std::int64_t count, dim;
  std::vector<float> values;
  Matrix<const float> view() const { return {values.data(), count, dim}; }
  Matrix<float> mutable_view() { return {values.data(), count, dim}; }
};

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : random_(seed) {}

  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }

  double magnitude(double highest) { return std::pow(10.0, std::uniform_real_distribution<>(-45.0, highest)(random_)); }

  // Rows of one scale, of all scales, of few values, near an offset, with copies and zeros.
  Rows rows(std::int64_t count, std::int64_t dim, double highest) {
    Rows out{count, dim, std::vector<float>(static_cast<std::size_t>(count * dim))};
    const std::int64_t kind = integer(0, 4);
    const double scale = magnitude(highest), offset = kind == 3 ? std::min(scale * 1e4, std::pow(10.0, highest)) : 0.0;
    std::normal_distribution<> normal;
    for (std::int64_t i = 0; i < count; ++i) {
      const double own = kind == 1 ? magnitude(highest) : scale;
      for (std::int64_t j = 0; j < dim; ++j) {
        double value = normal(random_);
        if (kind == 2) value = std::rint(value);
        if (kind == 4) value *= integer(0, 9) == 0;
        out.values[static_cast<std::size_t>(i * dim + j)] = static_cast<float>(value * own + offset);
      }
    }
    for (std::int64_t copies = integer(0, count / 2); copies > 0; --copies)
      copy(&out, integer(0, count - 1), integer(0, count - 1));
    if (integer(0, 3) == 0) std::fill_n(out.values.begin(), dim, 0.0f);
    return out;
  }

 private:
  static void copy(Rows* rows, std::int64_t from, std::int64_t to) {
    if (from != to)
      std::copy_n(&rows->values[static_cast<std::size_t>(from * rows->dim)], rows->dim,
                  &rows->values[static_cast<std::size_t>(to * rows->dim)]);
  }

  std::mt19937_64 random_;
};

double squared(const float* a, const float* b, std::int64_t dim) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < dim; ++i) {
    const double difference = static_cast<double>(a[i]) - b[i];
    sum += difference * difference;
  }
  return sum;
}

bool equal(double a, double b) { return a == b || std::abs(a - b) <= kTie * std::max(a, b); }

void check_neighbours(const Rows& queries, const Rows& bank, std::int64_t k, const std::int64_t* found,
                      const std::string& what) {
  std::vector<double> all(static_cast<std::size_t>(bank.count));
  for (std::int64_t q = 0; q < queries.count; ++q) {
    for (std::int64_t i = 0; i < bank.count; ++i) {
      all[static_cast<std::size_t>(i)] = squared(queries.view().row(q), bank.view().row(i), bank.dim);
    }
    std::vector<double> right = all;
    std::sort(right.begin(), right.end());
    std::vector<bool> taken(static_cast<std::size_t>(bank.count), false);
    for (std::int64_t j = 0; j < k; ++j) {
      const std::int64_t row = found[q * k + j];
      if (row < 0 || row >= bank.count || taken[static_cast<std::size_t>(row)])
        return expect(false, what + ": a row that is none, or twice");
      taken[static_cast<std::size_t>(row)] = true;
      expect(equal(all[static_cast<std::size_t>(row)], right[static_cast<std::size_t>(j)]), what);
    }
  }
}

void check_picks(const Rows& rows, const std::vector<std::int64_t>& picks, std::int64_t count,
                 const std::string& what) {
  expect(static_cast<std::int64_t>(picks.size()) == count, what + ": count");
  std::vector<double> nearest(static_cast<std::size_t>(rows.count), std::numeric_limits<double>::infinity());
  for (const std::int64_t pick : picks) {
    const double largest = *std::max_element(nearest.begin(), nearest.end());
    const double own = nearest[static_cast<std::size_t>(pick)];
    expect(own == largest || (own >= 0.0 && equal(own, largest)), what);
    for (std::int64_t i = 0; i < rows.count; ++i) {
      auto& value = nearest[static_cast<std::size_t>(i)];
      if (value >= 0.0) value = std::min(value, squared(rows.view().row(i), rows.view().row(pick), rows.dim));
    }
    nearest[static_cast<std::size_t>(pick)] = -1.0;
  }
}

std::vector<mmad::Isa> instruction_sets() {
  std::vector<mmad::Isa> all = mmad::compiled_isas();
  while (all.back() > mmad::best_isa()) all.pop_back();
  return all;
}

void check_search(Draw& draw, mmad::Isa isa, const std::string& precision) {
  const std::int64_t dim = draw.integer(0, 9) == 0 ? draw.integer(193, 230) : draw.integer(1, 40);
  const Rows bank = draw.rows(draw.integer(1, 120), dim, 16.0), queries = draw.rows(draw.integer(1, 40), dim, 16.0);
  const std::int64_t k = std::min(bank.count, draw.integer(1, draw.integer(0, 3) == 0 ? 120 : 4));
  const std::string what = "knn " + mmad::isa_name(isa) + " " + precision;
  const int threads = static_cast<int>(draw.integer(1, 4));
  mmad::Screening screening = mmad::choose_screening(bank.view(), precision, isa, threads);
  if (precision == "int8" && draw.integer(0, 1) == 0) screening.coarse = std::int64_t{64} << draw.integer(0, 2);
  const mmad::KnnIndex index(bank.view(), screening, isa, threads);
  const auto search = [&] {
    std::vector<float> distances(static_cast<std::size_t>(queries.count * k));
    std::vector<std::int64_t> found(distances.size());
    index.search(queries.view(), k, distances.data(), found.data(), threads);
    check_neighbours(queries, bank, k, found.data(), what);
  };
  if (draw.integer(0, 3) != 0) return search();
  std::thread other(search);  // an index serves several callers
  search();
  other.join();
}

// Of one pair on one level of the screen: whether it passes as operand.hpp says, and the interval of its distance.
void check_pair(const mmad::WholeRows& whole, const Rows& queries, const mmad::Rows& rows, std::int64_t q,
                const mmad::RowTerms& terms, double limit, const mmad::RowBounds& columns, std::int64_t row,
                bool passed, float lower, const std::string& what) {
  const double apart = squared(queries.view().row(q), whole.bank.row(row), whole.bank.cols);
  if (apart <= limit) expect(passed, what + ": a pair within its limit was ruled out");
  if (passed) {
    const mmad::Interval found = whole.squared_distance(queries.view(), rows.bounds, q, terms, columns, row, lower);
    expect(found.low <= apart * (1.0 + kTie) && apart <= found.high * (1.0 + kTie), what + ": outside its interval");
  }
  const double slack = static_cast<double>(rows.bounds.slack[q]) + columns.slack[row];
  if (slack >= mmad::kNoScreen || limit < 0.0) return;
  const double unit = whole.level.unit,
               residuals = static_cast<double>(rows.bounds.residual[q]) + columns.residual[row];
  const double noise = 2.0 * slack + 8.0 * whole.level.gamma * rows.bounds.norm[q] * columns.norm[row];
  const double norm = rows.bounds.norm[q], residual = rows.bounds.residual[q];
  double reach = std::sqrt(limit * unit) + residuals, nearest = std::sqrt(apart * unit) - residuals;
  if (std::sqrt(limit * unit) + residual > norm) {  // by Cauchy-Schwarz
    const double wide = 4.0 * (residual * columns.norm[row] + norm * columns.residual[row]);
    reach = std::sqrt(limit * unit);
    nearest = std::sqrt(std::max(0.0, apart * unit - wide));
  }
  if (nearest > 0.0 && nearest * nearest > reach * reach * (1.0 + 1e-5) + noise)
    expect(!passed, what + ": a pair was let pass that is out of reach");
}

// Coordinates in a subspace rule no pair out that is within its limit, although they are off by an error.
void check_projections(Draw& draw, mmad::Isa isa, const std::string& precision) {
  const std::int64_t dim = draw.integer(1, 90), dims = std::int64_t{2} << draw.integer(0, 5);
  const Rows bank = draw.rows(draw.integer(1, 60), dim, 16.0), queries = draw.rows(draw.integer(1, 20), dim, 16.0);
  const mmad::Format format = mmad::screening_format(precision, isa);
  const mmad::Frame frame = mmad::screening_frame(bank.view());
  const mmad::Subspace subspace = mmad::leading_subspace(bank.view(), frame, dims, 1);
  const mmad::Format of_rows = mmad::row_format(format, isa);
  const mmad::Rows rows = mmad::project_rows(queries.view(), frame, subspace, of_rows, isa, 1);
  const mmad::Panels panels = mmad::project_panels(bank.view(), frame, subspace, format, isa, 1);
  const mmad::Level level{mmad::tile_kernel(format, isa), mmad::accumulation_error(format, dims + mmad::kDepthStep),
                          frame.unit(), false};
  const mmad::TileSession session(level.kernel);
  for (std::int64_t q = 0; q < queries.count; ++q) {
    const std::int64_t row = draw.integer(0, bank.count - 1), step = level.kernel.panels;
    const double limit = squared(queries.view().row(q), bank.view().row(row), dim);
    const mmad::RowTerms terms = level.terms(rows.bounds, q, limit);
    mmad::TileResult result;
    const std::int64_t p = row / mmad::kPanelWidth / step * step;
    const bool any = mmad::screen_tile(level, rows, q, &terms, 1, panels, p, &result);
    expect(any && ((result.passed[0] >> (row - p * mmad::kPanelWidth)) & 1u) != 0,
           "projections " + mmad::isa_name(isa) + " " + precision);
  }
}

void check_bounds(Draw& draw, mmad::Isa isa, const std::string& precision) {
  const std::int64_t dim = draw.integer(1, 90);
  const Rows bank = draw.rows(draw.integer(1, 60), dim, 16.0), others = draw.rows(draw.integer(1, 20), dim, 16.0);
  const Rows& queries = draw.integer(0, 1) == 0 ? bank : others;
  const mmad::Format format = mmad::screening_format(precision, isa);
  const mmad::Frame frame = mmad::screening_frame(bank.view());
  const mmad::Rows rows = mmad::round_rows(queries.view(), frame, mmad::row_format(format, isa), 1);
  const mmad::Panels panels = mmad::pack_rows(bank.view(), frame, format, 1);
  const mmad::WholeRows whole(bank.view(), frame, format, isa);
  const mmad::TileSession session(whole.level.kernel);
  const std::int64_t columns = whole.level.kernel.panels * mmad::kPanelWidth;
  const std::string what = "bounds " + mmad::isa_name(isa) + " " + precision;
  for (std::int64_t q = 0; q < queries.count; ++q) {
    double limit = squared(queries.view().row(q), bank.view().row(draw.integer(0, bank.count - 1)), dim);
    if (draw.integer(0, 3) == 0) limit *= draw.integer(0, 1) == 0 ? 1e-3 : 1e3;
    if (draw.integer(0, 9) == 0) limit = std::numeric_limits<double>::infinity();
    const mmad::RowTerms terms = whole.level.terms(rows.bounds, q, limit);
    mmad::TileResult result;
    for (std::int64_t p = 0; p < panels.panel_count(); p += whole.level.kernel.panels) {
      const bool any = mmad::screen_tile(whole.level, rows, q, &terms, 1, panels, p, &result);
      for (std::int64_t j = 0; j < columns && p * mmad::kPanelWidth + j < bank.count; ++j) {
        const bool passed = any && ((result.passed[0] >> j) & 1u) != 0;
        check_pair(whole, queries, rows, q, terms, limit, panels.bounds, p * mmad::kPanelWidth + j, passed,
                   result.lower[j], what);
      }
    }
  }
}

// The picks over shards of these rows, cut at `cuts`.
std::vector<std::int64_t> picks_over_shards(const Rows& rows, const std::vector<std::int64_t>& cuts, std::int64_t count,
                                            const mmad::KCenterOptions& options) {
  std::vector<mmad::KCenterShard> shards;
  for (std::size_t s = 0; s + 1 < cuts.size(); ++s) {
    const Matrix<const float> part{rows.view().row(cuts[s]), cuts[s + 1] - cuts[s], rows.dim};
    shards.emplace_back(part, count, options);
  }
  mmad::KCenterCoordinator coordinator(rows.count, 0, count, options);
  std::int64_t told = 0;
  while (true) {
    const std::vector<std::int64_t>& picks = coordinator.result().rows;
    const std::int64_t made = static_cast<std::int64_t>(picks.size()) - told;
    for (std::size_t s = 0; s < shards.size(); ++s) {
      std::vector<float> centers;
      std::vector<std::int64_t> own;
      for (std::int64_t c = told; c < told + made; ++c) {
        centers.insert(centers.end(), rows.view().row(picks[c]), rows.view().row(picks[c]) + rows.dim);
        own.push_back(picks[c] >= cuts[s] && picks[c] < cuts[s + 1] ? picks[c] - cuts[s] : -1);
      }
      shards[s].meet({centers.data(), made, rows.dim}, own.data());
      std::vector<mmad::KCenterCandidate> settled;
      for (const mmad::KCenterCandidate& one : coordinator.pool()) {
        if (one.row >= cuts[s] && one.row < cuts[s + 1]) settled.push_back({one.squared, one.row - cuts[s]});
      }
      shards[s].settle(settled);
    }
    told += made;
    do {
      for (std::size_t s = 0; s < shards.size(); ++s) {
        mmad::KCenterCandidates found = shards[s].rise(coordinator.bar(), coordinator.wanted());
        for (mmad::KCenterCandidate& one : found.top) one.row += cuts[s];
        coordinator.offer(found);
      }
    } while (!coordinator.join());
    if (coordinator.covered()) return coordinator.result().rows;
    std::vector<float> pool;
    for (const mmad::KCenterCandidate& one : coordinator.pool()) {
      pool.insert(pool.end(), rows.view().row(one.row), rows.view().row(one.row) + rows.dim);
    }
    coordinator.pick({pool.data(), static_cast<std::int64_t>(coordinator.pool().size()), rows.dim});
    if (coordinator.covered()) return coordinator.result().rows;
  }
}

void check_selection(Draw& draw, mmad::Isa isa, const std::string& precision) {
  const std::int64_t dim = draw.integer(0, 9) == 0 ? draw.integer(193, 230) : draw.integer(1, 40);
  const Rows rows = draw.rows(draw.integer(1, 150), dim, 16.0);
  const std::int64_t count = draw.integer(1, rows.count);
  mmad::KCenterOptions options;
  options.isa = isa;
  options.format = mmad::screening_format(precision, isa);
  options.threads = static_cast<int>(draw.integer(1, 4));
  options.pool = draw.integer(0, 2) * 7;
  options.start = draw.integer(0, rows.count - 1);
  const auto result = mmad::k_center_greedy(rows.view(), {nullptr, 0, dim}, count, options);
  check_picks(rows, result.rows, count, "k_center_greedy " + mmad::isa_name(isa) + " " + precision);
  std::vector<std::int64_t> cuts{0, draw.integer(0, rows.count), draw.integer(0, rows.count), rows.count};
  std::sort(cuts.begin(), cuts.end());
  expect(picks_over_shards(rows, cuts, count, options) == result.rows, "k_center_greedy: shards pick other rows");
  // Going on from some rows as earlier centres takes none of their copies before others.
  const Rows centers = draw.rows(draw.integer(1, 9), dim, 16.0);
  options.radius = 0.0;
  const auto more = mmad::k_center_greedy(rows.view(), centers.view(), rows.count, options);
  for (const double radius : more.radii) expect(radius > 0.0, "k_center_greedy: a copy of a centre was picked");
}

void check_points(Draw& draw) {
  const Rows points = draw.rows(draw.integer(1, 300), 3, 37.0), centers = draw.rows(draw.integer(1, 60), 3, 37.0);
  const int threads = static_cast<int>(draw.integer(1, 4));
  const std::int64_t k = draw.integer(1, points.count);
  std::vector<std::int64_t> found(static_cast<std::size_t>(centers.count * k));
  mmad::knn_group(points.view(), centers.view(), k, threads, found.data());
  check_neighbours(centers, points, k, found.data(), "knn_group");

  const std::int64_t half = (points.count + 1) / 2, count = draw.integer(1, half);
  const std::int64_t first[] = {0, points.count - half}, lengths[] = {half, half};
  std::vector<std::int64_t> picks(static_cast<std::size_t>(2 * count));
  mmad::farthest_point_sample({points.view(), first, lengths, 2}, count, half - 1, -1.0, threads, picks.data());
  for (int cloud = 0; cloud < 2; ++cloud) {
    const auto* from = points.values.data() + 3 * first[cloud];
    const Rows part{half, 3, std::vector<float>(from, from + 3 * half)};
    check_picks(part, {picks.begin() + cloud * count, picks.begin() + (cloud + 1) * count}, count,
                "farthest_point_sample");
  }

  const Rows features = draw.rows(centers.count, draw.integer(1, 20), 4.0);
  const mmad::InverseDistance rule{draw.integer(1, centers.count), draw.integer(0, 1) == 0 ? 2.0 : 1.0, 1e-8};
  Rows spread{points.count, features.dim, std::vector<float>(static_cast<std::size_t>(points.count * features.dim))};
  mmad::interpolate_features(points.view(), centers.view(), features.view(), rule, threads, spread.mutable_view());
  Rows weights{points.count, centers.count, std::vector<float>(static_cast<std::size_t>(points.count * centers.count))};
  mmad::interpolation_weights(points.view(), centers.view(), rule, threads, weights.mutable_view());
  for (std::int64_t n = 0; n < points.count; ++n) {
    const float* row = weights.view().row(n);
    expect(std::abs(std::accumulate(row, row + centers.count, 0.0) - 1.0) < 1e-5, "interpolation_weights");
    for (std::int64_t d = 0; d < features.dim; ++d) {
      double sum = 0.0, size = 0.0;
      for (std::int64_t g = 0; g < centers.count; ++g) {
        const double term = static_cast<double>(row[g]) * features.view().row(g)[d];
        sum += term;
        size += std::abs(term);
      }
      expect(std::abs(spread.view().row(n)[d] - sum) <= 1e-5 * size + 1e-40, "interpolate_features");
    }
  }
}

void check_errors(Draw& draw) {
  Rows bank = draw.rows(200, 24, 10.0);
  bank.values[static_cast<std::size_t>(draw.integer(0, 4799))] = std::numeric_limits<float>::quiet_NaN();
  const mmad::Isa isa = mmad::best_isa();
  try {
    const mmad::KnnIndex index(bank.view(), {mmad::Format::fixed8, 64}, isa, 3);
    expect(false, "a row of NaN was taken");
  } catch (const std::invalid_argument&) {
  }
  struct Stop {};
  // One search must take longer than the time between two polls, in a fast build too.
  constexpr std::int64_t count = 20000;
  const Rows rows = draw.rows(count, 24, 10.0);
  const auto began = std::chrono::steady_clock::now();
  int polls = 0;
  try {
    const mmad::InterruptScope scope([&] {
      ++polls;
      throw Stop{};
    });
    while (std::chrono::steady_clock::now() - began < std::chrono::seconds(20)) {
      const mmad::KnnIndex index(rows.view(), {mmad::Format::float32, 0}, mmad::Isa::generic, 2);
      std::vector<float> distances(count);
      std::vector<std::int64_t> found(count);
      index.search(rows.view(), 1, distances.data(), found.data(), 2);
    }
  } catch (const Stop&) {
  }
  expect(polls == 1, "a long search was not interrupted");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 10;
  const auto seed = static_cast<std::uint64_t>(argc > 2 ? std::atoi(argv[2]) : 0);
  for (int round = 0; round < rounds; ++round) {
    Draw draw(seed + static_cast<std::uint64_t>(round));
    for (const mmad::Isa isa : instruction_sets()) {
      for (const char* precision : {"float32", "half", "int8"}) {
        check_search(draw, isa, precision);
        check_bounds(draw, isa, precision);
        check_projections(draw, isa, precision);
        if (std::string(precision) != "int8") check_selection(draw, isa, precision);
      }
    }
    check_points(draw);
    if (round == 0) check_errors(draw);
  }
  std::printf("%d rounds from seed %d, %d wrong\n", rounds, static_cast<int>(seed), failures.load());
  return failures.load() == 0 ? 0 : 1;
}
