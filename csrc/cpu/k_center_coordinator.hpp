// The coordinator of a selection (mmad/k_center_shards.hpp): joins the shards' candidates to a pool, and picks in it.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/k_center_pool.hpp"
#include "cpu/screen.hpp"
#include "mmad/k_center_shards.hpp"

namespace mmad {

// The pool's rows, in its order, where a block of picks reads them.
struct PoolRows {
  std::vector<const float*> originals;
  std::vector<std::int64_t> numbers;  // in `screened`
  std::int64_t dim;
  const ScreenRows& screened;
  const Screen& screen;
};

class Coordinator {
 public:
  Coordinator(std::int64_t rows, std::int64_t earlier, std::int64_t count, const KCenterOptions& options);

  double bar() const { return bar_; }
  std::int64_t wanted() const;
  void offer(const KCenterCandidates& candidates);
  bool join();
  const std::vector<KCenterCandidate>& pool() const { return pool_; }
  std::int64_t pick(const PoolRows& rows);
  bool complete() const { return finished_ || picks() == count_; }
  bool covered() const { return covered_; }
  const KCenterResult& result() const { return result_; }
  KCenterResult take_result() { return std::move(result_); }

 private:
  std::int64_t picks() const { return static_cast<std::int64_t>(result_.rows.size()); }
  double step() const;
  void choose_pool();
  void make_picks(const PoolRows& rows);
  std::int64_t farthest_in_pool() const;
  void meet_pick(std::int64_t at, const PoolRows& rows);
  void set_limit(std::int64_t p, const PoolRows& rows) { products_.set_limit(p, rows.numbers[p], pool_[p].squared); }
  void take_copies();
  void close_block(std::int64_t made);

  std::int64_t rows_, count_;
  KCenterOptions options_;
  KCenterResult result_;
  bool finished_ = false;  // before the count was reached
  bool surveyed_ = false;  // the largest of all values is known
  bool covered_ = false;

  std::int64_t pool_size_;
  double bar_ = 0.0;  // rows below it are left out of account until it sinks
  double sinking_;    // factor of its next step
  KCenterCandidates offered_;
  KCenterCandidate outside_{kPicked, 0};  // the first that is not in the pool
  std::vector<KCenterCandidate> pool_;
  PoolProducts products_;
};

}  // namespace mmad
