#include "cpu/k_center_shard.hpp"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <system_error>
#include <thread>
#include <utility>

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kRowBlockBytes = 192 << 10;
constexpr std::int64_t kPanelsBetweenChecks = 4;
// Rows that are brought up to date together: of those on a disk as many as are read while others are in hand.
constexpr std::int64_t kRowsOfAPart = 1 << 20;
constexpr std::int64_t kBytesOfAPart = 32 << 20;
// One in so many rows is dearer alone than all in a row: a disk gives those much faster.
constexpr std::size_t kSparse = 512;

// The first of many candidates: where twice as many have come together, the last half of them is let go.
class First {
 public:
  explicit First(std::int64_t at_most) : at_most_(static_cast<std::size_t>(std::max<std::int64_t>(0, at_most))) {}

  void add(const KCenterCandidate& candidate) {
    if (at_most_ == 0) return;
    top_.push_back(candidate);
    if (top_.size() >= 2 * at_most_ + kSlack) cut();
  }
  std::vector<KCenterCandidate> take() {
    cut();
    return std::move(top_);
  }

 private:
  static constexpr std::size_t kSlack = 1024;

  void cut() {
    if (top_.size() <= at_most_) return;
    std::nth_element(top_.begin(), top_.begin() + static_cast<std::ptrdiff_t>(at_most_), top_.end());
    top_.resize(at_most_);
  }

  std::size_t at_most_;
  std::vector<KCenterCandidate> top_;
};

}  // namespace

Shard::Shard(Matrix<const float> rows, std::int64_t centers, const KCenterOptions& options)
    : source_(rows),
      threads_(options.threads),
      space_(rows, options.format, options.isa, true, options.threads),
      screen_(space_, rows.cols),
      rows_(rows, space_, options.threads, options.scratch),
      squared_(static_cast<std::size_t>(rows.rows), kInfinity),
      seen_(static_cast<std::size_t>(rows.rows), 0) {
  centers_.reserve(centers, rows.cols, space_);
  if (options.scratch.empty()) return;
  const auto add = [this](const void* begin, std::int64_t row_bytes, int file, bool shared) {
    stored_.push_back(std::make_unique<StoredRows>(begin, row_bytes, source_.rows, file, shared));
    bytes_of_a_row_ += row_bytes;
    const std::int64_t page = StoredRows::page_bytes();
    page_rows_ = std::max(page_rows_, page / std::gcd(page, row_bytes));  // powers of two
  };
  add(rows.row(0), rows.stride * static_cast<std::int64_t>(sizeof(float)), options.file, false);
  for (const Rows* level : {&rows_.full, &rows_.coarse}) {
    if (level->count > 0) add(level->row(0), level->row_bytes(), level->values.file(), true);
  }
}

void Shard::meet(Matrix<const float> others, const std::int64_t* own, std::int64_t count) {
  const ScreenRows known(others, space_, threads_);
  std::int64_t next = 0;
  for (std::int64_t c = 0; c < count; ++c) {
    const std::int64_t row = own == nullptr ? -1 : own[c];
    centers_.append(row < 0 ? known : rows_, row < 0 ? next : row);
    center_rows_.push_back(row < 0 ? others.row(next) : kept(row));
    if (row < 0) ++next;
    if (row >= 0) squared_[row] = kPicked;
  }
}

// A row of its own where a centre's is looked up: not on a disk, where a part that is being loaded may be put in its place
// at that moment.
const float* Shard::kept(std::int64_t row) {
  if (stored_.empty()) return source_.row(row);
  return own_centers_.emplace_back(source_.row(row), source_.row(row) + source_.cols).data();
}

void Shard::settle(const std::vector<KCenterCandidate>& rows) {
  for (const KCenterCandidate& one : rows) {
    squared_[one.row] = one.squared;
    seen_[one.row] = centers_.count();
  }
}

// The rows that are not up to date, part by part. Of rows on a disk the next part is read while one is in hand.
class Shard::Parts {
 public:
  Parts(Shard* shard, double bar) : shard_(shard), bar_(bar), rows_(shard->rows_of_a_part()) {
    now_.slot = 1;
    begin(&next_, 0);
  }
  ~Parts() {
    wait();
    unload(now_);
    unload(next_);
  }
  Parts(const Parts&) = delete;
  Parts& operator=(const Parts&) = delete;

  struct Part {
    std::int64_t first = 0, end = 0;
    std::vector<std::int64_t> stale;  // ascending
    int slot = 0;
  };

  // The next part; null behind the last.
  Part* next() {
    wait();
    unload(now_);
    std::swap(now_, next_);
    begin(&next_, now_.end);
    return now_.first < now_.end ? &now_ : nullptr;
  }

 private:
  void begin(Part* part, std::int64_t first) {
    part->first = first;
    part->end = std::min(shard_->source_.rows, first + rows_);
    part->stale.clear();
    for (std::int64_t i = part->first; i < part->end; ++i) {
      if (shard_->squared_[i] >= bar_ && !shard_->fresh(i)) part->stale.push_back(i);
    }
    if (shard_->stored_.empty() || part->stale.empty()) return;
    try {
      thread_ = std::thread([this, part] { read(part); });
    } catch (const std::system_error&) {  // no thread to be had
      read(part);
    }
  }

  void read(Part* part) {
    const auto count = static_cast<std::size_t>(part->end - part->first);
    const bool many = part->stale.size() * kSparse >= count;
    for (const auto& rows : shard_->stored_) {
      if (!many || !rows->load(part->first, part->end, part->slot)) rows->ask(part->stale);
    }
  }
  void unload(const Part& part) {
    for (const auto& rows : shard_->stored_) rows->unload(part.slot);
  }
  void wait() {
    if (thread_.joinable()) thread_.join();
  }

  Shard* shard_;
  double bar_;
  std::int64_t rows_;
  Part now_, next_;
  std::thread thread_;
};

std::int64_t Shard::rows_of_a_part() const {
  if (stored_.empty()) return kRowsOfAPart;
  return std::clamp(kBytesOfAPart / bytes_of_a_row_ / page_rows_ * page_rows_, page_rows_, kRowsOfAPart);
}

KCenterCandidates Shard::rise(double bar, std::int64_t at_most) {
  KCenterCandidates found;
  First first(at_most);
  Parts parts(this, bar);
  while (Parts::Part* part = parts.next()) {
    updates_ += static_cast<std::int64_t>(part->stale.size());
    if (!part->stale.empty()) update(&part->stale, bar);
    for (std::int64_t i = part->first; i < part->end; ++i) {
      if (squared_[i] < bar) {
        found.below = std::max(found.below, squared_[i]);
      } else {
        ++found.above;
        first.add({squared_[i], i});
      }
    }
  }
  found.top = first.take();
  return found;
}

// Shows the listed rows the centres that they have not seen, each until its value falls below `cutoff`: such a row is no
// candidate for the pool, and what it has not seen yet it may never need to.
void Shard::update(std::vector<std::int64_t>* stale, double cutoff) {
  const auto earlier = [this](std::int64_t a, std::int64_t b) {
    return seen_[a] != seen_[b] ? seen_[a] < seen_[b] : a < b;
  };
  if (!std::is_sorted(stale->begin(), stale->end(), earlier)) std::sort(stale->begin(), stale->end(), earlier);
  const std::int64_t rows = screen_.tile_rows(), size = static_cast<std::int64_t>(stale->size());
  const std::int64_t fitting = std::max<std::int64_t>(1, kRowBlockBytes / screen_.first(rows_).row_bytes() / rows);
  const std::int64_t share = (size / (4 * threads_) + rows) / rows;
  const std::int64_t capacity = std::min(fitting, share) * rows;
  parallel(threads_, (size + capacity - 1) / capacity, 1, [&](Items& items) {
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
void Shard::update_block(RowBlock* block, double cutoff, Items& items) {
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

void Shard::meet_panels(RowBlock* block, std::int64_t r, std::int64_t panel) {
  TileResult result;
  const int n = static_cast<int>(std::min<std::int64_t>(screen_.tile_rows(), block->size() - r));
  if (!screen_.tile(block, r, n, centers_, panel, &result)) return;
  for (int i = 0; i < n; ++i) {
    if (result.passed[i] == 0) continue;
    const std::int64_t row = block->index(r + i);
    for (std::uint32_t bits = result.passed[i]; bits != 0; bits &= bits - 1) {
      const std::int64_t center = panel * kPanelWidth + __builtin_ctz(bits);
      if (center >= centers_.count()) continue;
      const double squared =
          squared_distance_within(source_.row(row), center_rows_[center], source_.cols, squared_[row]);
      if (squared < squared_[row]) squared_[row] = squared;
    }
    block->set_limit(r + i, squared_[row]);
  }
}

}  // namespace mmad
