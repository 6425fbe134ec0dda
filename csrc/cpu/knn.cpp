#include "mmad/knn.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/screen.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kQueryBlockBytes = 256 << 10;  // a block of queries stays in the second-level cache
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The k nearest rows seen so far; among equal distances the lowest rows.
class Nearest {
 public:
  using Entry = std::pair<double, std::int64_t>;  // squared distance, row

  explicit Nearest(std::int64_t k = 0) : k_(static_cast<std::size_t>(k)) {}

  void add(const Entry& entry) {
    if (heap_.size() == k_) {
      if (!(entry < heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.back() = entry;
    } else {
      heap_.push_back(entry);
    }
    std::push_heap(heap_.begin(), heap_.end());
  }
  double limit() const { return heap_.size() == k_ ? heap_.front().first : kInfinity; }
  const std::vector<Entry>& entries() const { return heap_; }
  void sort() { std::sort_heap(heap_.begin(), heap_.end()); }

 private:
  std::size_t k_;
  std::vector<Entry> heap_;
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
  Screen screen;

  Prepared(Matrix<const float> bank_, Format format, Isa isa, bool coarse, int threads)
      : bank(bank_), space(bank_, format, isa, coarse), panels(bank_, space, threads), screen(space, bank_.cols) {}

  // Searches queries [from, to) in panels [first, last).
  void scan(Matrix<const float> queries, const ScreenRows& rows, std::int64_t from, std::int64_t to, std::int64_t first,
            std::int64_t last, Nearest* nearest) const {
    RowBlock block(screen, rows, to - from);
    for (std::int64_t q = from; q < to; ++q) block.add(q, kInfinity);
    std::uint32_t passed[kMaxTileRows];
    for (std::int64_t p = first; p < last; p += screen.panels()) {
      for (std::int64_t r = 0; r < to - from; r += screen.tile_rows()) {
        const int n = static_cast<int>(std::min<std::int64_t>(screen.tile_rows(), to - from - r));
        if (!screen.tile(&block, r, n, panels, p, passed)) continue;
        for (int i = 0; i < n; ++i) {
          if (passed[i] == 0) continue;
          compare(queries.row(from + r + i), passed[i], p * kPanelWidth, &nearest[r + i]);
          block.set_limit(r + i, nearest[r + i].limit());
        }
      }
    }
  }

  // Computes the pairs that passed.
  void compare(const float* query, std::uint32_t columns, std::int64_t first, Nearest* nearest) const {
    for (; columns != 0; columns &= columns - 1) {
      const std::int64_t row = first + __builtin_ctz(columns);
      if (row >= bank.rows) return;
      const double squared = squared_distance_within(query, bank.row(row), bank.cols, nearest->limit());
      if (squared < kInfinity) nearest->add({squared, row});
    }
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
  return prepared_->panels.full.nbytes() + coarse + static_cast<std::int64_t>(space.center.size() * sizeof(float));
}

void KnnIndex::search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* indices,
                      int threads) const {
  if (queries.rows == 0) return;
  const ScreenRows rows(queries, prepared_->space, threads);
  const std::int64_t panels = prepared_->panels.full.panel_count();
  const Plan plan(queries.rows, rows.full.row_bytes(), panels, prepared_->screen, threads);
  std::vector<Nearest> nearest(static_cast<std::size_t>(queries.rows * plan.ranges), Nearest(k));
#pragma omp parallel num_threads(threads)
  {
    prepared_->screen.begin();
#pragma omp for schedule(dynamic) collapse(2)
    for (std::int64_t range = 0; range < plan.ranges; ++range) {
      for (std::int64_t block = 0; block < plan.blocks; ++block) {
        const std::int64_t from = block * plan.block, first = range * plan.range;
        prepared_->scan(queries, rows, from, std::min(queries.rows, from + plan.block), first,
                        std::min(panels, first + plan.range), &nearest[range * queries.rows + from]);
      }
    }
    prepared_->screen.end();
  }
  for (std::int64_t q = 0; q < queries.rows; ++q) {
    Nearest& best = nearest[q];
    for (std::int64_t range = 1; range < plan.ranges; ++range) {
      for (const Nearest::Entry& entry : nearest[range * queries.rows + q].entries()) best.add(entry);
    }
    best.sort();
    for (std::int64_t i = 0; i < k; ++i) {
      distances[q * k + i] = static_cast<float>(std::sqrt(best.entries()[i].first));
      indices[q * k + i] = best.entries()[i].second;
    }
  }
}

}  // namespace mmad
