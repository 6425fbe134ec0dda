#include "cpu/k_center_shard.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <system_error>
#include <thread>
#include <utility>

namespace mmad {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kRowBlockBytes = 192 << 10;
constexpr std::int64_t kPanelsBetweenChecks = 4;
// Rows that are brought up to date together. They are taken in the order of what they have seen, over and over: where they
// are on a disk, it is read once if memory holds a part.
constexpr std::int64_t kRowsOfAPart = 1 << 20;

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
      on_disk_(!options.scratch.empty()),
      space_(rows, options.format, options.isa, true, options.threads),
      screen_(space_, rows.cols),
      rows_(rows, space_, options.threads, options.scratch),
      squared_(static_cast<std::size_t>(rows.rows), kInfinity),
      seen_(static_cast<std::size_t>(rows.rows), 0) {
  centers_.reserve(centers, rows.cols, space_);
}

void Shard::meet(Matrix<const float> others, const std::int64_t* own, std::int64_t count) {
  const ScreenRows known(others, space_, threads_);
  std::int64_t next = 0;
  for (std::int64_t c = 0; c < count; ++c) {
    const std::int64_t row = own == nullptr ? -1 : own[c];
    centers_.append(row < 0 ? known : rows_, row < 0 ? next : row);
    center_rows_.push_back(row < 0 ? others.row(next) : source_.row(row));
    if (row < 0) ++next;
    if (row >= 0) squared_[row] = kPicked;
  }
}

void Shard::settle(const std::vector<KCenterCandidate>& rows) {
  for (const KCenterCandidate& one : rows) {
    squared_[one.row] = one.squared;
    seen_[one.row] = centers_.count();
  }
}

// Reads a part of rows that are on a disk ahead, while the one before is brought up to date.
class Shard::Reader {
 public:
  explicit Reader(const Shard& shard) : shard_(shard) {}
  ~Reader() { wait(); }
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // One in kSparse rows is dearer than all by one: a disk gives rows one after the other much faster.
  void read(std::int64_t part, std::size_t stale) {
    wait();
    if (!shard_.on_disk_ || stale * kSparse < static_cast<std::size_t>(kRowsOfAPart)) return;
    const std::int64_t from = part * kRowsOfAPart, count = std::min(kRowsOfAPart, shard_.source_.rows - from);
    try {
      thread_ = std::thread([this, from, count] {
        const Matrix<const float>& rows = shard_.source_;
        advise(rows.row(from), count * rows.stride * static_cast<std::int64_t>(sizeof(float)));
        for (const Rows* level : {&shard_.rows_.full, &shard_.rows_.coarse}) {
          if (level->count > 0) advise(level->row(from), count * level->row_bytes());
        }
      });
    } catch (const std::system_error&) {  // no thread to be had: rows are read when they are needed
    }
  }

 private:
  static constexpr std::size_t kSparse = 512;

  void wait() {
    if (thread_.joinable()) thread_.join();
  }
  static void advise(const void* memory, std::int64_t bytes) {
    const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    const auto at = reinterpret_cast<std::uintptr_t>(memory), first = at / page * page;
    ::madvise(reinterpret_cast<void*>(first), static_cast<std::size_t>(bytes) + (at - first), MADV_WILLNEED);
  }

  const Shard& shard_;
  std::thread thread_;
};

std::vector<std::int64_t> Shard::stale_rows(std::int64_t part, double bar) const {
  std::vector<std::int64_t> stale;
  for (std::int64_t i = part * kRowsOfAPart; i < std::min(source_.rows, (part + 1) * kRowsOfAPart); ++i) {
    if (squared_[i] >= bar && !fresh(i)) stale.push_back(i);
  }
  return stale;
}

KCenterCandidates Shard::rise(double bar, std::int64_t at_most) {
  KCenterCandidates found;
  First first(at_most);
  Reader reader(*this);
  std::vector<std::int64_t> next = stale_rows(0, bar);
  for (std::int64_t part = 0; part * kRowsOfAPart < source_.rows; ++part) {
    std::vector<std::int64_t> stale = std::move(next);
    next = stale_rows(part + 1, bar);
    reader.read(part + 1, next.size());
    if (!stale.empty()) update(&stale, bar);
    for (std::int64_t i = part * kRowsOfAPart; i < std::min(source_.rows, (part + 1) * kRowsOfAPart); ++i) {
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
