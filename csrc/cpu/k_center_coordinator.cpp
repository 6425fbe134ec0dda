#include "cpu/k_center_coordinator.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kSmallestPool = 128;
constexpr std::int64_t kLargestPool = 2048;
constexpr double kFirstStep = 0.7, kGround = 1e-3;
constexpr std::size_t kLeastTail = 64;
constexpr double kTimesWanted = 32.0;

double first_step(const KCenterOptions& options) { return options.sinking > 0.0 ? options.sinking : kFirstStep; }

}  // namespace

Coordinator::Coordinator(std::int64_t rows, std::int64_t earlier, std::int64_t count, const KCenterOptions& options)
    : rows_(rows),
      count_(count),
      options_(options),
      pool_size_(options.pool > 0 ? options.pool : kSmallestPool),
      sinking_(first_step(options)) {
  if (earlier > 0) return;
  result_.rows.push_back(options.start);
  result_.radii.push_back(kInfinity);
  covered_ = complete() && picks() == rows_;
}

std::int64_t Coordinator::wanted() const { return surveyed_ ? std::min(rows_ - picks(), pool_size_ + 1) : 1; }

void Coordinator::offer(const KCenterCandidates& candidates) {
  offered_.top.insert(offered_.top.end(), candidates.top.begin(), candidates.top.end());
  offered_.above += candidates.above;
  offered_.below = std::max(offered_.below, candidates.below);
}

// Blocks lower the bar by about the same factor each (close_block). All rows that may stand above the next one are
// brought up to date together; if too few are left there, the bar sinks further.
bool Coordinator::join() {
  if (covered_) return true;
  const bool enough = surveyed_ && offered_.above >= wanted();
  if (enough) {
    choose_pool();
    if (complete()) {
      result_.covering_radius = std::sqrt(pool_[farthest_in_pool()].squared);
      covered_ = true;
    }
  } else if (surveyed_) {
    bar_ = std::min(step() * bar_, offered_.below);  // over a gap at once; at 0 every row is in
    sinking_ *= sinking_;
  } else {
    for (const KCenterCandidate& one : offered_.top) bar_ = std::max(bar_, one.squared);
    surveyed_ = true;
  }
  offered_ = KCenterCandidates();
  return enough;
}

// How far the bar sinks where too few rows are left above it. Far values thin out like a power: of n values above a bar
// the mean logarithm of their share of it is 1 / k where their number falls as bar^-k (Hill 1975). That tells where many
// times as many stand as are wanted; below, they thin out faster, and there will be fewer. If that does not help again and
// again, the bar falls to the ground.
double Coordinator::step() const {
  if (options_.sinking > 0.0 || offered_.top.size() < kLeastTail || sinking_ < kGround) return sinking_;
  double sum = 0.0;
  for (const KCenterCandidate& one : offered_.top) sum += std::log(one.squared / bar_);
  const double found = static_cast<double>(offered_.top.size());
  return std::max(sinking_, std::pow(found / (kTimesWanted * static_cast<double>(wanted())), sum / found));
}

void Coordinator::choose_pool() {
  std::vector<KCenterCandidate>& top = offered_.top;
  const std::size_t pool = std::min(static_cast<std::size_t>(pool_size_), top.size());
  outside_ = {kPicked, rows_};
  if (pool < top.size()) {
    std::nth_element(top.begin(), top.begin() + static_cast<std::ptrdiff_t>(pool), top.end());
    outside_ = top[pool];
  }
  pool_.assign(top.begin(), top.begin() + static_cast<std::ptrdiff_t>(pool));
  std::sort(pool_.begin(), pool_.end(), [](const KCenterCandidate& a, const KCenterCandidate& b) {
    return a.row < b.row;
  });  // ties go to the lowest row
}

std::int64_t Coordinator::pick(const PoolRows& rows) {
  const std::int64_t before = picks();
  make_picks(rows);
  close_block(picks() - before);
  return picks() - before;
}

// The greedy loop inside the pool.
void Coordinator::make_picks(const PoolRows& rows) {
  for (bool first = true; picks() < count_; first = false) {
    const std::int64_t at = farthest_in_pool();
    const KCenterCandidate best = pool_[at];
    if (!(best < outside_) || best.squared == kPicked) return;
    if (best.squared == 0.0) return take_copies();
    if (std::sqrt(best.squared) <= options_.radius) {
      finished_ = true;
      return;
    }
    if (first) {
      products_.multiply(rows.numbers, rows.screen.first(rows.screened), rows.screen.first(), options_.threads);
      for (std::size_t p = 0; p < pool_.size(); ++p) set_limit(static_cast<std::int64_t>(p), rows);
    }
    result_.rows.push_back(best.row);
    result_.radii.push_back(std::sqrt(best.squared));
    pool_[at].squared = kPicked;
    meet_pick(at, rows);
  }
}

// Index in the pool of the row farthest from all centres, the lowest where there are several.
std::int64_t Coordinator::farthest_in_pool() const {
  std::int64_t best = 0;
  for (std::int64_t p = 1; p < static_cast<std::int64_t>(pool_.size()); ++p) {
    if (pool_[p].squared > pool_[best].squared) best = p;
  }
  return best;
}

// The newest centre, the pool's row `at`, meets all others of the pool.
void Coordinator::meet_pick(std::int64_t at, const PoolRows& rows) {
  products_.rule_out(at);
  products_.visit_within(at, rows.numbers[at], static_cast<std::int64_t>(pool_.size()), [&](std::int64_t p) {
    double& value = pool_[p].squared;
    value = std::min(value, squared_distance_within(rows.originals[p], rows.originals[at], rows.dim, value));
    set_limit(p, rows);
  });
}

// Every row left coincides with a centre: from here on the textbook takes the lowest row each time.
void Coordinator::take_copies() {
  finished_ = true;
  if (options_.radius >= 0.0) return;
  std::vector<std::int64_t> picked = result_.rows;
  std::sort(picked.begin(), picked.end());
  auto next = picked.begin();
  for (std::int64_t i = 0; i < rows_ && picks() < count_; ++i) {
    if (next != picked.end() && *next == i) {
      ++next;
      continue;
    }
    result_.rows.push_back(i);
    result_.radii.push_back(0.0);
  }
}

// Sees to the next block's bar and pool, or to what is left uncovered.
void Coordinator::close_block(std::int64_t made) {
  if (complete() && (picks() == rows_ || (!result_.radii.empty() && result_.radii.back() == 0.0))) covered_ = true;
  sinking_ = first_step(options_);
  const double last = outside_.squared > 0.0 ? outside_.squared : bar_;
  if (last < bar_) bar_ = last * (last / bar_);
  // Early on a pick changes many rows and blocks are short; a pool much larger than its block is wasted work.
  if (options_.pool > 0) return;
  if (3 * made > pool_size_) pool_size_ = std::min(kLargestPool, 2 * pool_size_);
  if (12 * made < pool_size_) pool_size_ = std::max(kSmallestPool, pool_size_ / 2);
}

}  // namespace mmad
