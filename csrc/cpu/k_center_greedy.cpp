// The textbook loop reads every row once per pick. Here a block of picks is made inside a small pool.
//
// Every row keeps its squared distance to the nearest of the centres that it has seen. One that has not seen the newest
// centres is stale: what it keeps is an upper bound. A block takes as its pool the rows with the largest values, brings
// those up to date, and runs the greedy loop among them. Let tau be the largest value outside. A pick whose distance
// exceeds tau is the pick that the full loop would make, because the rows outside only come closer. When the pool's best
// falls to tau, the next block starts. Most rows never come near the top and stay stale for good: laziness is half of
// the speed. The other half is the screen (screen.hpp), which rules most pairs of a row and a centre out.
//
// Distances that pass the screen are computed in float64 from the original rows, so rounding never decides, and the
// result depends neither on the pool's size nor on threads, formats or instruction sets.
#include "mmad/k_center_greedy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/clones.hpp"
#include "cpu/parallel.hpp"
#include "cpu/screen.hpp"
#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr double kPicked = -1.0;  // value of a row that was selected: below every distance
constexpr std::int64_t kRowBlockBytes = 192 << 10;
constexpr std::int64_t kPanelsBetweenChecks = 4;
constexpr std::int64_t kSmallestPool = 128;
constexpr std::int64_t kLargestPool = 2048;
constexpr double kSinking = 0.97;

// Orders by distance, the farthest first, and then by row.
struct Entry {
  double squared;
  std::int64_t row;
  bool operator<(const Entry& other) const {
    return squared != other.squared ? squared > other.squared : row < other.row;
  }
};

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

// The limits of columns, L^2 and a, of operand.hpp with the sides exchanged; an L^2 of -infinity is out of reach.
struct ColumnLimits {
  const float *squared, *within;
};

// What one row adds to the bounds of columns.
struct PickTerms {
  float rounded, squared, two_residual, two_norm;  // the squares less the slack
};

// Whether column j may be within its limit, by both bounds; an L^2 of kReach leaves the triangle inequality alone.
inline bool reaches(const float* lower, const PickTerms& pick, const ColumnTerms& columns, const ColumnLimits& limits,
                    std::int64_t j) {
  const float by_triangle = limits.within[j] * (limits.within[j] + pick.two_residual) - pick.rounded;
  const float by_product =
      limits.squared[j] + pick.two_residual * columns.norm[j] + pick.two_norm * columns.residual[j] - pick.squared;
  return lower[j] <= std::min(by_triangle, by_product);
}

MMAD_CLONES bool any_reaches(const float* lower, const PickTerms& pick, const ColumnTerms& columns,
                             const ColumnLimits& limits, std::int64_t from, std::int64_t to) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (std::int64_t j = from; j < to; ++j) any |= reaches(lower, pick, columns, limits, j);
  return any != 0;
}

// All products of a pool of rows with itself on one level of the screen.
class PoolProducts {
 public:
  void multiply(const std::vector<std::int64_t>& pool, const Rows& rows, const Level& level, int threads) {
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

  // Calls visit(p) for every p < n whose distance to the pool's row `at` may be within its limit.
  template <typename Visit>
  void visit_within(std::int64_t at, std::int64_t pick, std::int64_t n, const Visit& visit) {
    const RowTerms terms = level_->terms(rows_->bounds, pick, kInfinity);
    const ColumnTerms columns = column_terms(panels_, 0);
    if (rows_->format == Format::fixed16) {
      lower_bounds(reinterpret_cast<const std::int32_t*>(row(at)), terms, columns, lower_.data(), stride_);
    } else {
      lower_bounds(row(at), terms, columns, lower_.data(), stride_);
    }
    const RowBounds& bounds = rows_->bounds;
    const PickTerms own{bounds.rounded[pick] - bounds.slack[pick], bounds.squared[pick] - bounds.slack[pick],
                        2.0f * bounds.residual[pick], 2.0f * bounds.norm[pick]};
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
  void set_limit(std::int64_t p, std::int64_t i, double squared) {
    const double by_product = level_->by_product ? level_->framed(squared) : kReach;
    squared_[p] = std::nextafter(static_cast<float>(by_product), std::numeric_limits<float>::infinity());
    within_[p] = static_cast<float>(level_->reach(rows_->bounds, i, squared));
  }
  void rule_out(std::int64_t p) { squared_[p] = kMinusInfinity; }

 private:
  float* row(std::int64_t r) { return products_.data() + r * stride_; }

  const Level* level_ = nullptr;
  const Rows* rows_ = nullptr;
  Panels panels_;
  std::vector<float> products_;  // int32 where the format is fixed16
  std::vector<float> lower_;
  std::vector<float> squared_, within_;  // the limits, padded to the stride
  std::int64_t stride_ = 0;
};

class Selection {
 public:
  Selection(Matrix<const float> rows, Matrix<const float> centers, std::int64_t count, const KCenterOptions& options)
      : source_(rows),
        earlier_(centers),
        count_(count),
        options_(options),
        space_(rows, options.format, options.isa, true, options.threads),
        screen_(space_, rows.cols),
        rows_(rows, space_, options.threads),
        squared_(static_cast<std::size_t>(rows.rows), kInfinity),
        seen_(static_cast<std::size_t>(rows.rows), 0) {
    centers_.reserve(centers.rows + count, rows.cols, space_);
    const ScreenRows known(centers, space_, options.threads);
    for (std::int64_t i = 0; i < centers.rows; ++i) centers_.append(known, i);
    pool_size_ = options.pool > 0 ? options.pool : kSmallestPool;
  }

  KCenterResult run() {
    if (earlier_.rows == 0) add_center(options_.start, kInfinity);
    std::vector<std::int64_t> all(static_cast<std::size_t>(source_.rows));
    std::iota(all.begin(), all.end(), 0);
    update(&all, 0.0);
    bar_ = *std::max_element(squared_.begin(), squared_.end());
    while (picks() < count_ && !finished_) {
      const std::int64_t before = picks();
      refresh();
      make_picks();
      adapt_pool(picks() - before);
      if (options_.progress) options_.progress(picks());
    }
    result_.covering_radius = covering_radius();
    return std::move(result_);
  }

 private:
  std::int64_t picks() const { return static_cast<std::int64_t>(result_.rows.size()); }

  const float* center_row(std::int64_t c) const {
    return c < earlier_.rows ? earlier_.row(c) : source_.row(result_.rows[c - earlier_.rows]);
  }

  void add_center(std::int64_t row, double squared) {
    result_.rows.push_back(row);
    result_.radii.push_back(std::sqrt(squared));
    centers_.append(rows_, row);
    squared_[row] = kPicked;
  }

  bool fresh(std::int64_t i) const { return seen_[i] >= centers_.count(); }

  void meet(std::int64_t i, std::int64_t center) {
    const double squared = squared_distance_within(source_.row(i), center_row(center), source_.cols, squared_[i]);
    if (squared < squared_[i]) squared_[i] = squared;
  }

  // --- Bringing rows up to date -------------------------------------------------------------------------------------

  // Shows the listed rows the centres that they have not seen, each until its value falls below `cutoff`: such a row is
  // no candidate for the pool, and what it has not seen yet it may never need to.
  void update(std::vector<std::int64_t>* stale, double cutoff) {
    std::sort(stale->begin(), stale->end(),
              [this](std::int64_t a, std::int64_t b) { return seen_[a] != seen_[b] ? seen_[a] < seen_[b] : a < b; });
    const std::int64_t rows = screen_.tile_rows(), size = static_cast<std::int64_t>(stale->size());
    const std::int64_t fitting = std::max<std::int64_t>(1, kRowBlockBytes / screen_.first(rows_).row_bytes() / rows);
    const std::int64_t share = (size / (4 * options_.threads) + rows) / rows;
    const std::int64_t capacity = std::min(fitting, share) * rows;
    parallel(options_.threads, (size + capacity - 1) / capacity, 1, [&](Items& items) {
      RowBlock block(screen_, rows_, capacity);
      const TileSession session(screen_.kernel());
      items.each([&](std::int64_t item) {
        const std::int64_t from = item * capacity;
        for (std::int64_t r = from; r < std::min(size, from + capacity); ++r)
          block.add((*stale)[r], squared_[(*stale)[r]]);
        update_block(&block, cutoff, items);
      });
    });
  }

  // The block's rows stand in rising order of the centres that they have seen.
  void update_block(RowBlock* block, double cutoff, Items& items) {
    const std::int64_t step = screen_.panels(), panels = centers_.full.panel_count();
    std::int64_t p = seen_[block->index(0)] / kPanelWidth / step * step;
    while (p < panels && block->size() > 0) {
      items.check();
      const std::int64_t end = std::min(panels, p + kPanelsBetweenChecks);
      for (; p < end; p += step) {
        for (std::int64_t r = 0; r < block->size(); r += screen_.tile_rows()) {
          if (seen_[block->index(r)] >= (p + step) * kPanelWidth) break;  // and so for all that follow
          meet_panels(block, r, p);
        }
      }
      const std::int64_t reached = p * kPanelWidth;
      std::int64_t kept = 0;
      for (std::int64_t r = 0; r < block->size(); ++r) {
        const std::int64_t i = block->index(r);
        const bool waiting = seen_[i] > reached;  // for later panels
        if (!waiting) seen_[i] = std::min(centers_.count(), reached);
        if (waiting || squared_[i] >= cutoff) block->move(r, kept++);
      }
      block->shrink(kept);
    }
    block->shrink(0);
  }

  void meet_panels(RowBlock* block, std::int64_t r, std::int64_t panel) {
    TileResult result;
    const int n = static_cast<int>(std::min<std::int64_t>(screen_.tile_rows(), block->size() - r));
    if (!screen_.tile(block, r, n, centers_, panel, &result)) return;
    for (int i = 0; i < n; ++i) {
      if (result.passed[i] == 0) continue;
      const std::int64_t row = block->index(r + i);
      for (std::uint32_t bits = result.passed[i]; bits != 0; bits &= bits - 1) {
        const std::int64_t center = panel * kPanelWidth + __builtin_ctz(bits);
        if (center < centers_.count()) meet(row, center);
      }
      block->set_limit(r + i, squared_[row]);
    }
  }

  // --- Blocks -------------------------------------------------------------------------------------------------------

  // Makes pool_ the rows with the largest values, all of them up to date, and outside_ the first that is not in it.
  void refresh() {
    // Blocks lower the bar by about the same factor each. All rows that may stand above the next one are brought up to
    // date together; if too few are left there, the bar sinks further.
    const double last = outside_.squared > 0.0 ? outside_.squared : bar_;
    if (last < bar_) bar_ = last * (last / bar_);
    const auto wanted = static_cast<std::size_t>(std::min(source_.rows - picks(), pool_size_ + 1));
    while (true) {
      std::vector<std::int64_t> stale;
      double below = 0.0;  // the largest value under the bar
      top_.clear();
      for (std::int64_t i = 0; i < source_.rows; ++i) {
        if (squared_[i] < bar_) {
          below = std::max(below, squared_[i]);
          continue;
        }
        top_.push_back({squared_[i], i});
        if (!fresh(i)) stale.push_back(i);
      }
      if (!stale.empty()) {
        update(&stale, bar_);
      } else if (top_.size() < wanted) {
        bar_ = std::min(kSinking * bar_, below);  // over a gap at once; at 0 every row is in
      } else {
        return choose_pool();
      }
    }
  }

  void choose_pool() {
    const std::size_t pool = std::min(static_cast<std::size_t>(pool_size_), top_.size());
    outside_ = {kPicked, source_.rows};
    if (pool < top_.size()) {
      std::nth_element(top_.begin(), top_.begin() + static_cast<std::ptrdiff_t>(pool), top_.end());
      outside_ = top_[pool];
    }
    pool_.clear();
    for (std::size_t e = 0; e < pool; ++e) pool_.push_back(top_[e].row);
    std::sort(pool_.begin(), pool_.end());  // ties go to the lowest row
  }

  // The greedy loop inside the pool.
  void make_picks() {
    for (bool first = true; picks() < count_; first = false) {
      const std::int64_t at = farthest_in_pool();
      const Entry best{squared_[pool_[at]], pool_[at]};
      if (!(best < outside_) || best.squared == kPicked) return;
      if (best.squared == 0.0) return take_copies();
      if (std::sqrt(best.squared) <= options_.radius) {
        finished_ = true;
        return;
      }
      if (first) start_pool();
      add_center(best.row, best.squared);
      meet_pick(at);
    }
  }

  // Index in pool_ of the row farthest from all centres, the lowest where there are several.
  std::int64_t farthest_in_pool() const {
    std::int64_t best = 0;
    for (std::int64_t p = 1; p < static_cast<std::int64_t>(pool_.size()); ++p) {
      if (squared_[pool_[p]] > squared_[pool_[best]]) best = p;
    }
    return best;
  }

  void start_pool() {
    products_.multiply(pool_, screen_.first(rows_), screen_.first(), options_.threads);
    for (std::size_t p = 0; p < pool_.size(); ++p) set_limit(static_cast<std::int64_t>(p));
  }

  // The newest centre, the pool's row `at`, meets all others of the pool.
  void meet_pick(std::int64_t at) {
    const std::int64_t center = centers_.count() - 1;
    products_.rule_out(at);
    products_.visit_within(at, pool_[at], static_cast<std::int64_t>(pool_.size()), [&](std::int64_t p) {
      meet(pool_[p], center);
      set_limit(p);
    });
    for (const std::int64_t i : pool_) seen_[i] = centers_.count();
  }

  void set_limit(std::int64_t p) { products_.set_limit(p, pool_[p], squared_[pool_[p]]); }

  // Every row left coincides with a centre: from here on the textbook takes the lowest row each time.
  void take_copies() {
    finished_ = true;
    if (options_.radius >= 0.0) return;
    for (std::int64_t i = 0; i < source_.rows && picks() < count_; ++i) {
      if (squared_[i] == kPicked) continue;
      result_.rows.push_back(i);
      result_.radii.push_back(0.0);
      squared_[i] = kPicked;
    }
  }

  // The distance of the farthest row that was not selected to its nearest centre.
  double covering_radius() {
    if (picks() == source_.rows || (!result_.radii.empty() && result_.radii.back() == 0.0)) return 0.0;
    refresh();
    return std::sqrt(squared_[pool_[farthest_in_pool()]]);
  }

  // Early on a pick changes many rows and blocks are short; a pool much larger than its block is wasted work.
  void adapt_pool(std::int64_t picks) {
    if (options_.pool > 0) return;
    if (3 * picks > pool_size_) pool_size_ = std::min(kLargestPool, 2 * pool_size_);
    if (12 * picks < pool_size_) pool_size_ = std::max(kSmallestPool, pool_size_ / 2);
  }

  Matrix<const float> source_;
  Matrix<const float> earlier_;
  std::int64_t count_;
  const KCenterOptions& options_;
  ScreenSpace space_;
  Screen screen_;
  ScreenRows rows_;
  ScreenPanels centers_;
  std::vector<double> squared_;     // to the nearest centre seen; kPicked for selected rows
  std::vector<std::int64_t> seen_;  // centres
  KCenterResult result_;
  bool finished_ = false;

  std::int64_t pool_size_;
  double bar_ = 0.0;  // rows below it are left out of account until it sinks
  std::vector<Entry> top_;
  Entry outside_{kPicked, 0};
  std::vector<std::int64_t> pool_;  // rows, ascending
  PoolProducts products_;
};

}  // namespace

KCenterResult k_center_greedy(Matrix<const float> rows, Matrix<const float> centers, std::int64_t count,
                              const KCenterOptions& options) {
  return Selection(rows, centers, count, options).run();
}

}  // namespace mmad
