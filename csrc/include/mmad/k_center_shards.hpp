// Exact greedy k-centre selection of rows that lie on several machines, or in several memories.
//
// Of the rows outside its pool, a block of picks (k_center_greedy.cpp) needs one number: the largest value among them. So
// rows may be cut into any number of shards. A shard holds its rows, their upper bounds and what they have seen. A
// coordinator holds none: it joins the shards' best rows to a pool, makes a block of picks in it, and tells the shards.
// The picks are those of one machine, row for row, whatever the number of shards: who holds a row decides about nothing,
// and ties go to the lowest row of all. Distances have the same bits on every processor (operand.hpp) and in the shards of
// a GPU (cuda_k_center_shard.hpp), so that equal rows of unlike shards tie.
//
//   while (true) {
//     do for each shard: coordinator.offer(shard.rise(coordinator.bar(), coordinator.wanted()));  // rows numbered in all
//     while (!coordinator.join());
//     if (coordinator.covered()) break;
//     coordinator.pick(the rows of coordinator.pool());
//     for each shard: shard.meet(the new picks); shard.settle(its rows of the pool, their values);
//   }
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "mmad/k_center_greedy.hpp"
#include "mmad/matrix.hpp"

namespace mmad {

constexpr double kPicked = -1.0;  // value of a row that was selected: below every distance

// A row with its squared distance to the nearest centre. Orders by distance, the farthest first, and then by row.
struct KCenterCandidate {
  double squared;
  std::int64_t row;
  bool operator<(const KCenterCandidate& other) const {
    return squared != other.squared ? squared > other.squared : row < other.row;
  }
};

// What a shard offers for the pool.
struct KCenterCandidates {
  std::vector<KCenterCandidate> top;  // the first of its rows, in any order
  std::int64_t above = 0;             // how many of its rows are at the bar or above it
  double below = 0.0;                 // the largest value under the bar
};

class KCenterShard {
 public:
  // Views `rows`, which must outlive it; there may be none. It has room for `centers` centres. Of the options it takes
  // threads, instruction set, format, scratch and file. Throws std::invalid_argument that names a row which is not finite.
  KCenterShard(Matrix<const float> rows, std::int64_t centers, const KCenterOptions& options);
  KCenterShard(KCenterShard&&) noexcept;
  KCenterShard& operator=(KCenterShard&&) noexcept;
  ~KCenterShard();

  // The newest centres, in order; they are copied. own[c] >= 0 says which row of this shard centre c is: it is picked.
  void meet(Matrix<const float> centers, const std::int64_t* own);
  // Rows that have met every centre by now, elsewhere, with their values.
  void settle(const std::vector<KCenterCandidate>& rows);
  // Brings the rows at `bar` and above up to date, and returns the first `at_most` of those that still are.
  KCenterCandidates rise(double bar, std::int64_t at_most);
  // How many rows all rises have brought up to date, each as often as it was.
  std::int64_t updates() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

class KCenterCoordinator {
 public:
  // Selects at most `count` of `rows` rows. Without `earlier` centres options.start is the first pick: the shards are to
  // meet it, or the earlier ones, before the first rise.
  KCenterCoordinator(std::int64_t rows, std::int64_t earlier, std::int64_t count, const KCenterOptions& options);
  KCenterCoordinator(KCenterCoordinator&&) noexcept;
  KCenterCoordinator& operator=(KCenterCoordinator&&) noexcept;
  ~KCenterCoordinator();

  double bar() const;           // what a rise has to go down to
  std::int64_t wanted() const;  // how many candidates of a shard are of use
  void offer(const KCenterCandidates& candidates);
  // After the offers of all shards: true where the pool stands; false where the bar has changed, and all must rise again.
  bool join();
  // Global rows, ascending, and their values; after pick() those after the block.
  const std::vector<KCenterCandidate>& pool() const;
  // Makes a block of picks among the pool's rows, given in its order, and returns how many.
  std::int64_t pick(Matrix<const float> pool);

  bool complete() const;  // no more picks will be made
  bool covered() const;   // the covering radius stands too
  const KCenterResult& result() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mmad
