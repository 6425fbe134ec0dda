// The textbook loop reads every row once a pick. Here a block of picks is made inside a small pool.
//
// Every row keeps an interval for its squared distance to the nearest centre. Intervals come from narrow products
// (operand.hpp) and only shrink; one that has not seen the newest centres is stale, but its upper end stays an upper
// bound. A block takes as its pool the rows with the largest upper ends, brings those up to date, and runs the greedy
// loop among them. Let tau be the largest upper end outside. A pick whose distance exceeds tau is the pick that the
// full loop would make, because the rows outside only come closer. When the pool's best falls to tau, the next
// block starts. Most rows never come near the top and stay stale for good: laziness is most of the speed.
//
// Within the pool, rows whose intervals reach the largest lower end are contenders; their distances are computed in
// float64 from the original rows, so rounding never decides. Hence the result depends neither on the pool's size nor on
// threads, formats or instruction sets.
#include "mmad/k_center_greedy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/clones.hpp"
#include "cpu/tile.hpp"

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kPicked = -1.0;  // upper end of a row that was selected: below every distance
constexpr std::int64_t kRowBlockBytes = 192 << 10;
constexpr std::int64_t kPanelsBetweenChecks = 4;
constexpr double kBelowPool = 0.97;
constexpr std::int64_t kSmallestPool = 128;
constexpr std::int64_t kLargestPool = 2048;

float round_up(double value) { return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity()); }

// What is known of each row's squared distance to its nearest centre.
struct Intervals {
  std::vector<double> upper;          // of the distance to `nearest`, hence of the minimum
  std::vector<double> lower;          // of the distance to `nearest`; equal to upper once computed in float64
  std::vector<double> second;         // least lower bound among the other centres that may be nearer
  std::vector<std::int32_t> nearest;  // centre
  std::vector<std::int32_t> seen;     // centres taken into account

  void resize(std::int64_t rows) {
    const auto n = static_cast<std::size_t>(rows);
    upper.assign(n, kInfinity);
    lower.assign(n, kInfinity);
    second.assign(n, kInfinity);
    nearest.assign(n, -1);
    seen.assign(n, 0);
  }
  double floor(std::int64_t i) const { return std::min(lower[i], second[i]); }
  bool exact(std::int64_t i) const { return lower[i] == upper[i] && second[i] > upper[i]; }
  void set_exact(std::int64_t i, double value, std::int32_t center) {
    upper[i] = lower[i] = value;
    second[i] = kInfinity;
    nearest[i] = center;
  }
  void meet(std::int64_t i, std::int32_t center, double low, double high) {
    if (high < upper[i]) {
      second[i] = std::min(second[i], lower[i]);
      upper[i] = high;
      lower[i] = low;
      nearest[i] = center;
    } else {
      second[i] = std::min(second[i], low);
    }
  }
};

// Orders by distance, the farthest first, and then by row.
struct Entry {
  double upper;
  std::int64_t row;
  bool operator<(const Entry& other) const { return upper != other.upper ? upper > other.upper : row < other.row; }
};

// Half the width of the interval of a product, less what depends on the row alone.
double column_error(const RowTerms& row, const RowBounds& columns, std::int64_t j) {
  const double norm = columns.norm[j];
  return row.norm_factor * norm + row.residual_factor * static_cast<double>(columns.residual[j]) +
         kSlack * norm * norm + kTiny;
}

RowTerms row_terms(const RowBounds& rows, std::int64_t i, float gamma) {
  const float norm = rows.norm[i];
  return {2.0f * rows.scale[i], 2.0f * (rows.residual[i] + gamma * norm), 2.0f * norm, 0.0f};
}

double row_slack(const RowBounds& rows, std::int64_t i) {
  const double norm = rows.norm[i];
  return kSlack * norm * norm + kTiny;
}

// lower[j] of one pick against the pool; the caller adds the pick's own terms.
template <typename T>
inline void pool_lower_body(const T* sums, const RowTerms& row, const float* base, const float* scale,
                            const float* norm, const float* residual, float* lower, std::int64_t n) {
#pragma omp simd
  for (std::int64_t j = 0; j < n; ++j) {
    lower[j] = base[j] - row.norm_factor * norm[j] - row.residual_factor * residual[j] -
               row.two_scale * (scale[j] * static_cast<float>(sums[j]));
  }
}
MMAD_CLONES void pool_lower(const float* sums, const RowTerms& row, const Panels& p, float* lower, std::int64_t n) {
  pool_lower_body(sums, row, p.base.data(), p.bounds.scale.data(), p.bounds.norm.data(), p.bounds.residual.data(),
                  lower, n);
}
MMAD_CLONES void pool_lower(const std::int32_t* sums, const RowTerms& row, const Panels& p, float* lower,
                            std::int64_t n) {
  pool_lower_body(sums, row, p.base.data(), p.bounds.scale.data(), p.bounds.norm.data(), p.bounds.residual.data(),
                  lower, n);
}

MMAD_CLONES bool any_reaches(const float* lower, float offset, const float* upper, std::int64_t n) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (std::int64_t j = 0; j < n; ++j) any |= lower[j] + offset <= upper[j];
  return any != 0;
}

class Selection {
 public:
  Selection(Matrix<const float> rows, Matrix<const float> centers, std::int64_t count, const KCenterOptions& options)
      : source_(rows),
        earlier_(centers),
        count_(count),
        options_(options),
        kernel_(tile_kernel(options.format, options.isa)),
        shift_(robust_center(rows)),
        rows_(round_rows(rows, shift_.data(), options.format, options.threads)),
        gamma_(accumulation_error(options.format, rows_.depth)) {
    intervals_.resize(rows.rows);
    centers_.reserve(centers.rows + count, rows.cols, options.format);
    const Rows known = round_rows(centers, shift_.data(), options.format, options.threads);
    for (std::int64_t i = 0; i < centers.rows; ++i) centers_.append(known, i);
    pool_size_ = options.pool > 0 ? options.pool : kSmallestPool;
  }

  KCenterResult run() {
    if (earlier_.rows == 0) add_center(options_.start, kInfinity);
    std::vector<std::int64_t> all(static_cast<std::size_t>(source_.rows));
    std::iota(all.begin(), all.end(), 0);
    update(all, 0.0);
    guess_ = *std::max_element(intervals_.upper.begin(), intervals_.upper.end());
    while (static_cast<std::int64_t>(result_.rows.size()) < count_ && !finished_) {
      const std::int64_t before = static_cast<std::int64_t>(result_.rows.size());
      refresh();
      make_picks();
      adapt_pool(static_cast<std::int64_t>(result_.rows.size()) - before);
      if (options_.progress) options_.progress(static_cast<std::int64_t>(result_.rows.size()));
    }
    result_.covering_radius = covering_radius();
    return std::move(result_);
  }

 private:
  const float* center_row(std::int64_t c) const {
    if (c < earlier_.rows) return earlier_.row(c);
    return source_.row(result_.rows[c - earlier_.rows]);
  }

  void add_center(std::int64_t row, double squared) {
    result_.rows.push_back(row);
    result_.radii.push_back(std::sqrt(squared));
    centers_.append(rows_, row);
    intervals_.upper[row] = kPicked;
    intervals_.lower[row] = kPicked;
  }

  // A row meets a centre whose distance lies in [low, high]. One that was computed exactly stays so: many centres at
  // the same distance (one-hot features, grids) would otherwise make it ambiguous again with every pick.
  void meet(std::int64_t i, std::int32_t center, double low, double high) {
    if (low > intervals_.upper[i] || center == intervals_.nearest[i]) return;
    if (!intervals_.exact(i)) return intervals_.meet(i, center, std::max(low, 0.0), high);
    const double squared = squared_distance(source_.row(i), center_row(center), source_.cols);
    if (squared < intervals_.upper[i]) intervals_.set_exact(i, squared, center);
  }

  // --- Bringing rows up to date -------------------------------------------------------------------------------------

  // Screens the listed rows against the centres that they have not seen, each until its upper end falls below
  // `cutoff`: such a row is no candidate for the pool, and what it has not seen yet it may never need to.
  void update(std::vector<std::int64_t>& stale, double cutoff) {
    const auto& seen = intervals_.seen;
    std::sort(stale.begin(), stale.end(), [&seen](std::int64_t a, std::int64_t b) {
      return seen[a] != seen[b] ? seen[a] < seen[b] : a < b;
    });
    const auto size = static_cast<std::int64_t>(stale.size());
    const std::int64_t fitting = std::max<std::int64_t>(1, kRowBlockBytes / rows_.row_bytes() / kernel_.rows);
    const std::int64_t share = (size / (4 * options_.threads) + kernel_.rows) / kernel_.rows;
    const std::int64_t block = std::min(fitting, share) * kernel_.rows;
#pragma omp parallel num_threads(options_.threads)
    {
      RowBlock rows(block, rows_.row_bytes());
      kernel_.begin();
#pragma omp for schedule(dynamic)
      for (std::int64_t from = 0; from < size; from += block) {
        for (std::int64_t r = from; r < std::min(size, from + block); ++r) add_to_block(stale[r], &rows);
        update_block(&rows, cutoff);
      }
      kernel_.end();
    }
  }

  // Rows copied together, in rising order of the centres that they have seen.
  struct RowBlock {
    std::int64_t row_bytes;
    std::vector<std::uint8_t> values;
    std::vector<std::int64_t> list;
    std::vector<RowTerms> terms;

    RowBlock(std::int64_t rows, std::int64_t bytes)
        : row_bytes(bytes), values(static_cast<std::size_t>((rows + kSpareRows) * bytes)) {}
    std::uint8_t* row(std::int64_t r) { return values.data() + r * row_bytes; }
    void move(std::int64_t from, std::int64_t to) {
      if (from == to) return;
      std::copy_n(row(from), row_bytes, row(to));
      list[to] = list[from];
      terms[to] = terms[from];
    }
    void shrink(std::int64_t size) {
      list.resize(static_cast<std::size_t>(size));
      terms.resize(static_cast<std::size_t>(size));
    }
  };

  void add_to_block(std::int64_t i, RowBlock* rows) const {
    std::copy_n(rows_.row(i), rows->row_bytes, rows->row(static_cast<std::int64_t>(rows->list.size())));
    rows->list.push_back(i);
    rows->terms.push_back(row_terms(rows_.bounds, i, gamma_));
    rows->terms.back().threshold = threshold(i);
  }

  void update_block(RowBlock* rows, double cutoff) {
    const std::int64_t step = kernel_.panels;
    std::int64_t size = static_cast<std::int64_t>(rows->list.size());
    std::int64_t p = intervals_.seen[rows->list[0]] / kPanelWidth / step * step;
    while (p < centers_.panel_count() && size > 0) {
      const std::int64_t end = std::min(centers_.panel_count(), p + kPanelsBetweenChecks);
      for (; p < end; p += step) {
        for (std::int64_t r = 0; r < size; r += kernel_.rows) {
          if (intervals_.seen[rows->list[r]] >= (p + step) * kPanelWidth) break;  // sorted: so are all that follow
          const int n = static_cast<int>(std::min<std::int64_t>(kernel_.rows, size - r));
          screen_tile(rows->list.data() + r, n, rows->row(r), p, rows->terms.data() + r);
        }
      }
      std::int64_t kept = 0;
      for (std::int64_t r = 0; r < size; ++r) {
        std::int32_t& seen = intervals_.seen[rows->list[r]];
        const auto reached = static_cast<std::int32_t>(std::min(centers_.count, p * kPanelWidth));
        if (seen > p * kPanelWidth) {  // its turn comes with later panels
          rows->move(r, kept++);
          continue;
        }
        seen = reached;
        if (intervals_.upper[rows->list[r]] >= cutoff) rows->move(r, kept++);
      }
      size = kept;
    }
    rows->shrink(0);
  }

  float threshold(std::int64_t i) const {
    return round_up(intervals_.upper[i] - rows_.bounds.squared[i] + row_slack(rows_.bounds, i));
  }

  void screen_tile(const std::int64_t* list, int n, const std::uint8_t* values, std::int64_t panel, RowTerms* terms) {
    alignas(64) float accumulators[kMaxTileRows * kMaxTileColumns];
    alignas(64) float lower[kMaxTileRows * kMaxTileColumns];
    std::uint32_t passed[kMaxTileRows];
    const std::int64_t column = panel * kPanelWidth;
    kernel_.multiply(values, rows_.row_bytes(), centers_.panel(panel), centers_.panel_bytes(), rows_.depth,
                     accumulators);
    const RowBounds& bounds = centers_.bounds;
    const ColumnTerms columns{centers_.base.data() + column, bounds.scale.data() + column, bounds.norm.data() + column,
                              bounds.residual.data() + column};
    if (!kernel_.screen(accumulators, n, terms, columns, lower, passed)) return;
    const int width = kernel_.panels * kPanelWidth;
    for (int r = 0; r < n; ++r) {
      if (passed[r] == 0) continue;
      const std::int64_t i = list[r];
      const double slack = row_slack(rows_.bounds, i), squared = rows_.bounds.squared[i];
      for (std::uint32_t bits = passed[r]; bits != 0; bits &= bits - 1) {
        const std::int64_t j = column + __builtin_ctz(bits);
        if (j >= centers_.count) break;
        const double low = lower[r * width + (j - column)] + squared - slack;
        const double high = low + 2.0 * (column_error(terms[r], bounds, j) + slack);
        meet(i, static_cast<std::int32_t>(j), low, high);
      }
      terms[r].threshold = threshold(i);
    }
  }

  // --- Blocks -------------------------------------------------------------------------------------------------------

  // Makes pool_ the rows with the largest upper ends, all of them up to date, and outside_ the first that is not in it.
  void refresh() {
    // Blocks lower the bar by about the same factor each: what falls below the next one need not be brought up to date.
    const double bar = std::max(outside_.upper, 0.0);
    const double expected = last_bar_ > 0.0 ? bar * std::min(1.0, bar / last_bar_) : 0.0;
    last_bar_ = bar;
    std::vector<std::int64_t> stale;
    while (true) {
      const double lowest = gather_top();
      stale.clear();
      for (const Entry& entry : top_) {
        if (intervals_.seen[entry.row] < centers_.count) stale.push_back(entry.row);
      }
      const std::size_t pool_end = std::min<std::size_t>(top_.size(), static_cast<std::size_t>(pool_size_));
      bool pool_is_fresh = true;
      for (std::size_t e = 0; e < pool_end && pool_is_fresh; ++e) {
        pool_is_fresh = intervals_.seen[top_[e].row] >= centers_.count;
      }
      if (pool_is_fresh) break;
      update(stale, std::min(expected, kBelowPool * lowest));
    }
    split_top();
  }

  // top_: rows by upper end, at least one more than the pool takes where there are as many, the pool's first.
  // Returns the least upper end in the pool.
  double gather_top() {
    const auto& upper = intervals_.upper;
    const auto left = source_.rows - static_cast<std::int64_t>(result_.rows.size());
    const auto wanted = static_cast<std::size_t>(std::min(left, 2 * pool_size_ + 1));
    while (true) {
      top_.clear();
      for (std::int64_t i = 0; i < source_.rows; ++i) {
        if (upper[i] >= guess_) top_.push_back({upper[i], i});
      }
      if (top_.size() >= wanted) break;
      guess_ = guess_ > 1e-30 ? 0.9 * guess_ : 0.0;
    }
    if (top_.size() > wanted) {
      std::nth_element(top_.begin(), top_.begin() + static_cast<std::ptrdiff_t>(wanted), top_.end());
      guess_ = top_[wanted].upper;
      top_.resize(wanted + 1);
    }
    const auto pool = static_cast<std::size_t>(std::min<std::int64_t>(pool_size_, static_cast<std::int64_t>(top_.size())));
    if (pool == top_.size()) return 0.0;
    std::nth_element(top_.begin(), top_.begin() + static_cast<std::ptrdiff_t>(pool), top_.end());
    return top_[pool].upper;
  }

  void split_top() {
    const auto pool = static_cast<std::size_t>(std::min<std::int64_t>(pool_size_, static_cast<std::int64_t>(top_.size())));
    outside_ = pool < top_.size() ? top_[pool] : Entry{kPicked, source_.rows};
    pool_.clear();
    for (std::size_t e = 0; e < pool; ++e) pool_.push_back(top_[e].row);
    std::sort(pool_.begin(), pool_.end());  // ties go to the lowest row
  }

  // The greedy loop inside the pool.
  void make_picks() {
    bool first = true;
    while (static_cast<std::int64_t>(result_.rows.size()) < count_) {
      const std::int64_t at = farthest_in_pool();
      if (at < 0) return;
      const std::int64_t row = pool_[at];
      const double squared = intervals_.upper[row];
      if (!(Entry{squared, row} < outside_)) {
        if (first) resolve_outside(squared);
        return;
      }
      if (squared == 0.0) return take_duplicates();
      if (std::sqrt(squared) <= options_.radius) {
        finished_ = true;
        return;
      }
      if (first) multiply_pool();
      first = false;
      add_center(row, squared);
      meet_pick(at);
    }
  }

  // Index in pool_ of the row farthest from all centres, its distance computed in float64; -1 if none is left.
  std::int64_t farthest_in_pool() {
    double reach = kPicked;
    for (const std::int64_t i : pool_) {
      if (intervals_.upper[i] >= 0.0) reach = std::max(reach, intervals_.floor(i));
    }
    std::int64_t best = -1;
    for (std::size_t p = 0; p < pool_.size(); ++p) {
      const std::int64_t i = pool_[p];
      if (intervals_.upper[i] < 0.0 || intervals_.upper[i] < reach) continue;
      resolve(i);
      if (best < 0 || intervals_.upper[i] > intervals_.upper[pool_[best]]) best = static_cast<std::int64_t>(p);
    }
    return best;
  }

  // All products of the pool with itself, rows and columns in the order of pool_.
  void multiply_pool() {
    const auto n = static_cast<std::int64_t>(pool_.size());
    pool_panels_ = Panels();
    pool_panels_.reserve(n, source_.cols, options_.format);
    for (const std::int64_t i : pool_) pool_panels_.append(rows_, i);
    const std::int64_t tile_columns = kernel_.panels * kPanelWidth;
    pool_stride_ = (n + tile_columns - 1) / tile_columns * tile_columns;
    const std::int64_t tiles = (n + kernel_.rows - 1) / kernel_.rows;
    products_.resize(static_cast<std::size_t>(tiles * kernel_.rows * pool_stride_));
    const std::int64_t bytes = rows_.row_bytes();
#pragma omp parallel num_threads(options_.threads)
    {
      std::vector<std::uint8_t> values(static_cast<std::size_t>(kernel_.rows * bytes));
      alignas(64) float tile[kMaxTileRows * kMaxTileColumns];
      kernel_.begin();
#pragma omp for schedule(static)
      for (std::int64_t t = 0; t < tiles; ++t) {
        for (int r = 0; r < kernel_.rows; ++r) {
          const std::int64_t i = pool_[std::min(n - 1, t * kernel_.rows + r)];
          std::copy_n(rows_.row(i), bytes, values.data() + r * bytes);
        }
        for (std::int64_t p = 0; p * kPanelWidth < pool_stride_; p += kernel_.panels) {
          kernel_.multiply(values.data(), bytes, pool_panels_.panel(p), pool_panels_.panel_bytes(), rows_.depth, tile);
          for (int r = 0; r < kernel_.rows; ++r) {
            std::copy_n(tile + r * tile_columns, tile_columns,
                        products_.data() + (t * kernel_.rows + r) * pool_stride_ + p * kPanelWidth);
          }
        }
      }
      kernel_.end();
    }
    pool_upper_.assign(static_cast<std::size_t>(pool_stride_), -std::numeric_limits<float>::infinity());
    pool_lower_.resize(static_cast<std::size_t>(pool_stride_));
    for (std::int64_t p = 0; p < n; ++p) pool_upper_[p] = round_up(intervals_.upper[pool_[p]]);
  }

  // The newest centre, the pool's row `at`, meets all others of the pool.
  void meet_pick(std::int64_t at) {
    const auto n = static_cast<std::int64_t>(pool_.size());
    const auto center = static_cast<std::int32_t>(centers_.count - 1);
    const std::int64_t pick = pool_[at];
    const RowTerms terms = row_terms(rows_.bounds, pick, gamma_);
    const float* sums = products_.data() + at * pool_stride_;
    if (options_.format == Format::fixed16) {
      pool_lower(reinterpret_cast<const std::int32_t*>(sums), terms, pool_panels_, pool_lower_.data(), pool_stride_);
    } else {
      pool_lower(sums, terms, pool_panels_, pool_lower_.data(), pool_stride_);
    }
    const double slack = row_slack(rows_.bounds, pick), own = rows_.bounds.squared[pick] - slack;
    pool_upper_[at] = -std::numeric_limits<float>::infinity();
    const float offset = static_cast<float>(own);
    constexpr std::int64_t kStride = 64;
    for (std::int64_t from = 0; from < n; from += kStride) {
      const std::int64_t to = std::min(n, from + kStride);
      if (!any_reaches(pool_lower_.data() + from, offset, pool_upper_.data() + from, to - from)) continue;
      for (std::int64_t p = from; p < to; ++p) {
        if (!(pool_lower_[p] + offset <= pool_upper_[p])) continue;
        const double low = pool_lower_[p] + own;
        const double high = low + 2.0 * (column_error(terms, pool_panels_.bounds, p) + slack);
        meet(pool_[p], center, low, high);
        pool_upper_[p] = round_up(intervals_.upper[pool_[p]]);
      }
    }
    for (const std::int64_t i : pool_) intervals_.seen[i] = static_cast<std::int32_t>(centers_.count);
  }

  // --- Exact distances ----------------------------------------------------------------------------------------------

  void resolve(std::int64_t i) {
    if (intervals_.exact(i)) return;
    if (intervals_.second[i] > intervals_.upper[i]) {
      const std::int32_t c = intervals_.nearest[i];
      intervals_.set_exact(i, squared_distance(source_.row(i), center_row(c), source_.cols), c);
    } else {
      search_all_centers(i);
    }
  }

  // Several centres may be the nearest one: float64 for each that its bound does not rule out.
  void search_all_centers(std::int64_t i) {
    const std::int64_t bytes = rows_.row_bytes();
    std::vector<std::uint8_t> values(static_cast<std::size_t>(kernel_.rows * bytes), 0);
    std::copy_n(rows_.row(i), bytes, values.data());
    alignas(64) float accumulators[kMaxTileRows * kMaxTileColumns];
    alignas(64) float lower[kMaxTileRows * kMaxTileColumns];
    std::uint32_t passed[kMaxTileRows];
    RowTerms terms = row_terms(rows_.bounds, i, gamma_);
    terms.threshold = threshold(i);
    double best = kInfinity;
    std::int32_t nearest = -1;
    kernel_.begin();
    for (std::int64_t p = 0; p < centers_.panel_count(); p += kernel_.panels) {
      const std::int64_t column = p * kPanelWidth;
      const ColumnTerms columns{centers_.base.data() + column, centers_.bounds.scale.data() + column,
                                centers_.bounds.norm.data() + column, centers_.bounds.residual.data() + column};
      kernel_.multiply(values.data(), bytes, centers_.panel(p), centers_.panel_bytes(), rows_.depth, accumulators);
      if (!kernel_.screen(accumulators, 1, &terms, columns, lower, passed)) continue;
      for (std::uint32_t bits = passed[0]; bits != 0; bits &= bits - 1) {
        const std::int64_t c = column + __builtin_ctz(bits);
        if (c >= centers_.count) break;
        const double squared = squared_distance(source_.row(i), center_row(c), source_.cols);
        if (squared < best) {
          best = squared;
          nearest = static_cast<std::int32_t>(c);
        }
      }
    }
    kernel_.end();
    intervals_.set_exact(i, best, nearest);
  }

  // The pool's best does not beat the bound of some row outside: compute those rows exactly, then choose the pool anew.
  void resolve_outside(double squared) {
    std::vector<std::int64_t> stale, contenders;
    for (std::int64_t i = 0; i < source_.rows; ++i) {
      if (intervals_.upper[i] < squared || intervals_.upper[i] < 0.0) continue;
      contenders.push_back(i);
      if (intervals_.seen[i] < centers_.count) stale.push_back(i);
    }
    update(stale, squared);
    for (const std::int64_t i : contenders) {
      if (intervals_.upper[i] >= squared) resolve(i);  // up to date: update() leaves off only below the cutoff
    }
  }

  // Every row left coincides with a centre: from here on the textbook takes the lowest row each time.
  void take_duplicates() {
    for (std::int64_t i = 0; i < source_.rows && static_cast<std::int64_t>(result_.rows.size()) < count_; ++i) {
      if (options_.radius >= 0.0) break;
      if (intervals_.upper[i] >= 0.0) {
        result_.rows.push_back(i);
        result_.radii.push_back(0.0);
        intervals_.upper[i] = kPicked;
      }
    }
    covered_ = true;
    finished_ = true;
  }

  // Of the rows that were not selected, the distance of the farthest to its nearest centre.
  double covering_radius() {
    if (covered_ || static_cast<std::int64_t>(result_.rows.size()) == source_.rows) return 0.0;
    while (true) {
      refresh();
      const std::int64_t at = farthest_in_pool();
      const Entry best{intervals_.upper[pool_[at]], pool_[at]};
      if (best < outside_) return std::sqrt(best.upper);
      resolve_outside(best.upper);
    }
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
  TileKernel kernel_;
  std::vector<float> shift_;
  Rows rows_;
  float gamma_;
  Panels centers_;
  Intervals intervals_;
  KCenterResult result_;
  bool finished_ = false, covered_ = false;

  std::int64_t pool_size_;
  double guess_ = 0.0;  // no fewer rows than a pool needs have been seen to reach this
  std::vector<Entry> top_;
  Entry outside_{kPicked, 0};
  double last_bar_ = 0.0;
  std::vector<std::int64_t> pool_;  // rows, ascending
  Panels pool_panels_;
  std::vector<float> products_;  // int32 where the format is fixed16
  std::int64_t pool_stride_ = 0;
  std::vector<float> pool_upper_, pool_lower_;
};

}  // namespace

KCenterResult k_center_greedy(Matrix<const float> rows, Matrix<const float> centers, std::int64_t count,
                              const KCenterOptions& options) {
  return Selection(rows, centers, count, options).run();
}

}  // namespace mmad
