#include "mmad/knn.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/findings.hpp"
#include "cpu/parallel.hpp"
#include "cpu/search_levels.hpp"
#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kQueryBlockBytes = 1 << 20;  // queries by turns with a panel: the bank is read seldom

// How the work is cut: blocks of queries, and ranges of the bank where there are fewer blocks than threads.
struct Plan {
  std::int64_t block, blocks, range, ranges;

  Plan(std::int64_t queries, std::int64_t panels, const SearchLevels& levels, int threads) {
    const auto up = [](std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; };
    const std::int64_t rows = levels.kernel().rows;
    const std::int64_t fitting = std::max<std::int64_t>(1, kQueryBlockBytes / levels.row_bytes() / rows) * rows;
    std::int64_t wanted = (queries + fitting - 1) / fitting;
    if (queries >= 2 * threads * rows) wanted = up(wanted, threads);
    block = up((queries + wanted - 1) / wanted, rows);
    blocks = (queries + block - 1) / block;
    const std::int64_t cuts = blocks >= threads ? 1 : (threads + blocks - 1) / blocks;
    range = up((panels + cuts - 1) / cuts, levels.kernel().panels);
    ranges = (panels + range - 1) / range;
  }
};

}  // namespace

struct KnnIndex::Prepared {
  Matrix<const float> bank;
  Screening screening;
  std::unique_ptr<SearchLevels> levels;
};

KnnIndex::KnnIndex(Matrix<const float> bank, Screening screening, Isa isa, int threads)
    : prepared_(std::make_unique<Prepared>()) {
  *prepared_ = {bank, screening,
                screening.coarse > 0 ? two_levels(bank, screening.coarse, isa, threads)
                                     : one_level(bank, screening.format, isa, threads)};
}
KnnIndex::~KnnIndex() = default;
KnnIndex::KnnIndex(KnnIndex&&) noexcept = default;

std::int64_t KnnIndex::size() const { return prepared_->bank.rows; }
Screening KnnIndex::screening() const { return prepared_->screening; }
std::int64_t KnnIndex::nbytes() const { return prepared_->levels->nbytes(); }

void KnnIndex::search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* indices,
                      int threads) const {
  if (queries.rows == 0) return;
  const SearchLevels& levels = *prepared_->levels;
  const ScreenRows rows = levels.round(queries, threads);
  const std::int64_t panels = levels.panels();
  const Plan plan(queries.rows, panels, levels, threads);
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
    const TileSession session(levels.kernel());
    items.each([&](std::int64_t item) {
      const std::int64_t range = item / plan.blocks;
      const std::int64_t from = item % plan.blocks * plan.block, to = std::min(queries.rows, from + plan.block);
      const std::int64_t first = range * plan.range;
      levels.scan(queries, rows, {from, to, first, std::min(panels, first + plan.range)},
                  &findings[range * queries.rows + from], items);
      for (std::int64_t q = from; q < to && plan.ranges == 1; ++q) answer(q);
    });
  });
  if (plan.ranges == 1) return;
  parallel(threads, queries.rows, 16, [&](Items& items) { items.each(answer); });
}

}  // namespace mmad
