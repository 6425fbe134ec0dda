// The textbook loop reads every row once per pick. Here a block of picks is made inside a small pool.
//
// A block takes as its pool the rows with the largest values, brings those up to date (k_center_shard.hpp), and runs the
// greedy loop among them. Let tau be the largest value outside. A pick whose distance exceeds tau is the pick that the
// full loop would make, because the rows outside only come closer. When the pool's best falls to tau, the next block
// starts. Most rows never come near the top and stay stale for good: laziness is half of the speed. The other half is the
// screen (screen.hpp), which rules most pairs of a row and a centre out.
//
// Distances that pass the screen are computed in float64 from the original rows, so rounding never decides, and the
// result depends neither on the pool's size nor on shards, threads, formats or instruction sets.
//
// This is the loop over one shard, in the caller's memory: pools are read where they are. Loops over several shards make
// the same requests (mmad/k_center_shards.hpp).
#include "mmad/k_center_greedy.hpp"

#include "cpu/k_center_coordinator.hpp"
#include "cpu/k_center_shard.hpp"

namespace mmad {
namespace {

PoolRows in_place(const Shard& shard, const std::vector<KCenterCandidate>& pool) {
  PoolRows rows{{}, {}, shard.source().cols, shard.screened(), shard.screen()};
  for (const KCenterCandidate& one : pool) {
    rows.originals.push_back(shard.source().row(one.row));
    rows.numbers.push_back(one.row);
  }
  return rows;
}

}  // namespace

KCenterResult k_center_greedy(Matrix<const float> rows, Matrix<const float> centers, std::int64_t count,
                              const KCenterOptions& options) {
  Shard shard(rows, centers.rows + count, options);
  Coordinator coordinator(rows.rows, centers.rows, count, options);
  const std::vector<std::int64_t>& picks = coordinator.result().rows;
  shard.meet(centers, nullptr, centers.rows);
  shard.meet({nullptr, 0, rows.cols}, picks.data(), static_cast<std::int64_t>(picks.size()));
  while (true) {
    do {
      coordinator.offer(shard.rise(coordinator.bar(), coordinator.wanted()));
    } while (!coordinator.join());
    if (coordinator.covered()) break;
    const std::int64_t made = coordinator.pick(in_place(shard, coordinator.pool()));
    if (options.progress) options.progress(static_cast<std::int64_t>(picks.size()));
    if (coordinator.covered()) break;
    shard.meet({nullptr, 0, rows.cols}, picks.data() + picks.size() - made, made);
    shard.settle(coordinator.pool());
  }
  return coordinator.take_result();
}

}  // namespace mmad
