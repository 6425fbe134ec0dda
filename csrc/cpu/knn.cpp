#include "mmad/knn.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/screen.hpp"
#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kQueryBlockBytes = 1 << 20;  // queries by turns with a panel: the bank is read seldom
constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kTrialPanels = 64;
// The coarse level itself takes an eighth of the full level's time, and work left over costs a tenth more than at first;
// but limits sink further after the trial.
constexpr double kWorthwhileLeftOver = 0.8;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Candidate {
  double low;  // lower bound of the squared distance
  std::int64_t row;
};

// The k nearest of `candidates` by float64 distance, the lowest rows among equal ones: (squared distance, row), in order.
using Decided = std::vector<std::pair<double, std::int64_t>>;
Decided decide(Matrix<const float> bank, const float* query, std::vector<Candidate>& candidates, std::size_t k) {
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return std::tie(a.low, a.row) < std::tie(b.low, b.row); });
  Decided best;  // max-heap
  for (const Candidate& candidate : candidates) {
    // And so for all that follow.
    if (best.size() == k && std::make_pair(candidate.low, candidate.row) > best.front()) break;
    best.emplace_back(squared_distance(query, bank.row(candidate.row), bank.cols), candidate.row);
    std::push_heap(best.begin(), best.end());
    if (best.size() <= k) continue;
    std::pop_heap(best.begin(), best.end());
    best.pop_back();
  }
  std::sort_heap(best.begin(), best.end());
  return best;
}

// What one query has found: the k smallest upper bounds, of which the largest is the limit that no neighbour exceeds,
// and the rows whose lower bounds do not rule them out.
class Findings {
 public:
  explicit Findings(std::int64_t k = 0) : k_(static_cast<std::size_t>(k)) {}

  // The squared distance that a row must not exceed to be of use. Rows come in ascending order and ties go to the lowest:
  // once k rows are at distance 0, none is of use any more.
  double limit() const {
    const double largest = largest_upper();
    return largest == 0.0 ? -1.0 : largest;
  }

  // Rows come in ascending order. One whose distance is at least the limit loses to the k rows before it that are within,
  // equal or not. Returns whether so many are left that they should be settled.
  bool add(Interval squared, std::int64_t row) {
    if (squared.low >= largest_upper()) return false;
    add_upper(squared.high);
    candidates_.push_back({squared.low, row});
    if (candidates_.size() < compact_at_) return false;
    compact();
    return candidates_.size() >= crowd();
  }

  // Decides between the candidates so far: with many rows at one distance, or nearly so, memory stays bounded.
  void settle(Matrix<const float> bank, const float* query) {
    const Decided best = decide(bank, query, candidates_, k_);
    upper_.clear();
    candidates_.clear();
    for (const auto& [squared, row] : best) {
      upper_.push_back(squared);
      candidates_.push_back({squared, row});
    }
    std::make_heap(upper_.begin(), upper_.end());
    compact_at_ = crowd();
  }

  // Takes over what a later range of the bank found for the same query.
  void join(const Findings& other) {
    for (const double value : other.upper_) add_upper(value);
    candidates_.insert(candidates_.end(), other.candidates_.begin(), other.candidates_.end());
  }

  // The candidates that the limit leaves.
  std::vector<Candidate>& contenders() {
    compact();
    return candidates_;
  }

 private:
  double largest_upper() const { return upper_.size() == k_ ? upper_.front() : kInfinity; }

  std::size_t crowd() const { return std::max(kCrowd, 4 * k_); }

  void add_upper(double value) {
    if (upper_.size() == k_) {
      if (value >= upper_.front()) return;
      std::pop_heap(upper_.begin(), upper_.end());
      upper_.back() = value;
    } else {
      upper_.push_back(value);
    }
    std::push_heap(upper_.begin(), upper_.end());
  }

  void compact() {
    const double bound = largest_upper();
    const auto beyond = [bound](const Candidate& c) { return c.low > bound; };
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), beyond), candidates_.end());
    compact_at_ = std::max<std::size_t>(256, 2 * candidates_.size());
  }

  static constexpr std::size_t kCrowd = 1024;

  std::size_t k_;
  std::size_t compact_at_ = 256;
  std::vector<double> upper_;  // max-heap
  std::vector<Candidate> candidates_;
};

// How the work is cut: blocks of queries, and ranges of the bank where there are fewer blocks than threads.
struct Plan {
  std::int64_t block, blocks, range, ranges;

  Plan(std::int64_t queries, std::int64_t row_bytes, std::int64_t panels, const Screen& screen, int threads) {
    const auto up = [](std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; };
    const std::int64_t rows = screen.tile_rows();
    const std::int64_t fitting = std::max<std::int64_t>(1, kQueryBlockBytes / row_bytes / rows) * rows;
    std::int64_t wanted = (queries + fitting - 1) / fitting;
    if (queries >= 2 * threads * rows) wanted = up(wanted, threads);
    block = up((queries + wanted - 1) / wanted, rows);
    blocks = (queries + block - 1) / block;
    const std::int64_t cuts = blocks >= threads ? 1 : (threads + blocks - 1) / blocks;
    range = up((panels + cuts - 1) / cuts, screen.panels());
    ranges = (panels + range - 1) / range;
  }
};

}  // namespace

struct KnnIndex::Prepared {
  Matrix<const float> bank;
  ScreenSpace space;
  ScreenPanels panels;
  Screen screen, plain;  // plain: without the coarse level

  Prepared(Matrix<const float> bank_, Format format, Isa isa, bool coarse, int threads)
      : bank(bank_),
        space(bank_, format, isa, coarse),
        panels(bank_, space, threads),
        screen(space, bank_.cols),
        plain(space, bank_.cols, false) {}

  // Searches queries [from, to) in panels [first, last). How much the coarse level rules out depends on how far the
  // queries are from the bank, against the spread of the bank: where it is too little, the rest goes without it.
  void scan(Matrix<const float> queries, const ScreenRows& rows, std::int64_t from, std::int64_t to, std::int64_t first,
            std::int64_t last, Findings* findings, Items& items) const {
    const std::int64_t trial = std::min(last, first + kTrialPanels);
    const std::int64_t middle = first + (trial - first) / 4 * 2;  // kernels take two panels at a time
    RowBlock block(screen, rows, to - from);
    for (std::int64_t q = from; q < to; ++q) block.add(q, kInfinity);
    scan_panels(screen, queries, &block, first, middle, findings, items);
    block.left_over();  // the first limits are loose and say nothing
    scan_panels(screen, queries, &block, middle, trial, findings, items);
    if (block.left_over() < kWorthwhileLeftOver) {
      return scan_panels(screen, queries, &block, trial, last, findings, items);
    }
    RowBlock whole(plain, rows, to - from);
    for (std::int64_t q = from; q < to; ++q) whole.add(q, block.limit(q - from));
    scan_panels(plain, queries, &whole, trial, last, findings, items);
  }

  void scan_panels(const Screen& level, Matrix<const float> queries, RowBlock* block, std::int64_t first,
                   std::int64_t last, Findings* findings, Items& items) const {
    TileResult result;
    const Panels& columns = level.first(panels);
    const std::int64_t step = level.panels() * columns.panel_bytes();
    const std::int64_t tiles = (block->size() + level.tile_rows() - 1) / level.tile_rows();
    const std::int64_t share = step / std::max<std::int64_t>(tiles, 1) + kCacheLine;
    for (std::int64_t p = first; p < last; p += level.panels()) {
      items.check();
      const std::uint8_t* next = columns.panel(p) + step;
      for (std::int64_t r = 0; r < block->size(); r += level.tile_rows()) {
        // A panel is used by one block of queries and then not for long: the next one comes from memory meanwhile.
        const std::uint8_t* upto = std::min(next + share, columns.values.data() + columns.values.size());
        for (; next < upto; next += kCacheLine) __builtin_prefetch(next, 0, 2);
        const int n = static_cast<int>(std::min<std::int64_t>(level.tile_rows(), block->size() - r));
        if (level.tile(block, r, n, panels, p, &result)) take_tile(result, queries, block, p * kPanelWidth, findings);
      }
      while (level.rest(block, panels, p, &result)) take_tile(result, queries, block, p * kPanelWidth, findings);
    }
  }

  void take_tile(const TileResult& result, Matrix<const float> queries, RowBlock* block, std::int64_t first,
                 Findings* findings) const {
    for (int i = 0; i < result.count; ++i) {
      if (result.passed[i] == 0) continue;
      const std::int64_t r = result.r[i];
      const float* lower = result.full ? result.lower + i * screen.tile_columns() : nullptr;
      take(queries, *block, r, first, result.passed[i], lower, &findings[r]);
      block->set_limit(r, findings[r].limit());
    }
  }

  // The columns that passed: from the full level their intervals are known, from the coarse level they are computed.
  void take(Matrix<const float> queries, const RowBlock& block, std::int64_t r, std::int64_t first,
            std::uint32_t passed, const float* lower, Findings* findings) const {
    const float* query = queries.row(block.index(r));
    for (; passed != 0; passed &= passed - 1) {
      const int j = __builtin_ctz(passed);
      const std::int64_t row = first + j;
      if (row >= bank.rows) return;
      Interval squared{};
      if (lower != nullptr) squared = screen.interval(block, r, panels.full, row, lower[j]);
      if (squared.low <= 0.0) squared = computed(query, bank.row(row));
      if (findings->add(squared, row)) findings->settle(bank, query);
    }
  }

  // From the original rows. Equal ones are told exactly: patches without a measurement are all the same vector, in the
  // bank and among the queries, and an interval around 0 would let each of them stay a candidate.
  Interval computed(const float* query, const float* row) const {
    return squared_distance_interval(query, row, bank.cols);
  }
};

Format screening_format(const std::string& precision, Isa isa) {
  const Format half = isa >= Isa::amx ? Format::bfloat16 : Format::fixed16;
  if (precision == "float32") return Format::float32;
  if (precision == "half") return half;
  if (precision == "int8") return Format::fixed8;
  if (precision == "auto") return isa >= Isa::avx2 ? half : Format::float32;
  throw std::invalid_argument("precision: expected auto, float32, half or int8, found '" + precision + "'");
}

KnnIndex::KnnIndex(Matrix<const float> bank, Format format, Isa isa, bool coarse, int threads)
    : prepared_(std::make_unique<Prepared>(bank, format, isa, coarse, threads)) {}
KnnIndex::~KnnIndex() = default;
KnnIndex::KnnIndex(KnnIndex&&) noexcept = default;

std::int64_t KnnIndex::size() const { return prepared_->bank.rows; }
Format KnnIndex::format() const { return prepared_->space.packed; }
bool KnnIndex::coarse() const { return prepared_->space.coarse(); }

std::int64_t KnnIndex::nbytes() const {
  const ScreenSpace& space = prepared_->space;
  const std::int64_t coarse =
      space.coarse() ? prepared_->panels.coarse.nbytes() + space.subspace.directions.nbytes() : 0;
  return prepared_->panels.full.nbytes() + coarse +
         static_cast<std::int64_t>(space.frame.center.size() * sizeof(float));
}

void KnnIndex::search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* indices,
                      int threads) const {
  if (queries.rows == 0) return;
  const ScreenRows rows(queries, prepared_->space, threads);
  const std::int64_t panels = prepared_->panels.full.panel_count();
  const Plan plan(queries.rows, rows.full.row_bytes(), panels, prepared_->screen, threads);
  std::vector<Findings> findings;
  resize_for("the candidates of the queries", &findings, queries.rows * plan.ranges, Findings(k));
  const auto answer = [&](std::int64_t q) {
    Findings& found = findings[q];
    for (std::int64_t range = 1; range < plan.ranges; ++range) found.join(findings[range * queries.rows + q]);
    const Decided best = decide(prepared_->bank, queries.row(q), found.contenders(), static_cast<std::size_t>(k));
    if (best.size() != static_cast<std::size_t>(k)) throw std::logic_error("knn: fewer candidates than neighbours");
    for (std::int64_t i = 0; i < k; ++i) {
      distances[q * k + i] = static_cast<float>(std::sqrt(best[i].first));
      indices[q * k + i] = best[i].second;
    }
    found = Findings();
  };
  parallel(threads, plan.ranges * plan.blocks, 1, [&](Items& items) {
    const TileSession session(prepared_->screen.kernel());
    items.each([&](std::int64_t item) {
      const std::int64_t range = item / plan.blocks;
      const std::int64_t from = item % plan.blocks * plan.block, to = std::min(queries.rows, from + plan.block);
      const std::int64_t first = range * plan.range;
      prepared_->scan(queries, rows, from, to, first, std::min(panels, first + plan.range),
                      &findings[range * queries.rows + from], items);
      for (std::int64_t q = from; q < to && plan.ranges == 1; ++q) answer(q);
    });
  });
  if (plan.ranges == 1) return;
  parallel(threads, queries.rows, 16, [&](Items& items) { items.each(answer); });
}

}  // namespace mmad
