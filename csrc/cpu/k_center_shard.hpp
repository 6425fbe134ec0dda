// A shard of a selection (mmad/k_center_shards.hpp): rows, their upper bounds, and the centres that they have met.
//
// Every row keeps its squared distance to the nearest of the centres that it has seen. One that has not seen the newest
// centres is stale: what it keeps is an upper bound. Most rows never come near the top and stay stale for good.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "cpu/parallel.hpp"
#include "cpu/screen.hpp"
#include "cpu/stored_rows.hpp"
#include "mmad/k_center_shards.hpp"

namespace mmad {

class Shard {
 public:
  Shard(Matrix<const float> rows, std::int64_t centers, const KCenterOptions& options);

  // The `count` newest centres. own[c] is the row of this shard that centre c is, or negative: then it is the next of
  // `others`, which must outlive the shard. No `own` says that all are others.
  void meet(Matrix<const float> others, const std::int64_t* own, std::int64_t count);
  void settle(const std::vector<KCenterCandidate>& rows);
  KCenterCandidates rise(double bar, std::int64_t at_most);
  std::int64_t updates() const { return updates_; }

  // What a coordinator in the same place reads.
  const Matrix<const float>& source() const { return source_; }
  const Screen& screen() const { return screen_; }
  const ScreenRows& screened() const { return rows_; }

 private:
  class Parts;

  const float* kept(std::int64_t row);
  std::int64_t rows_of_a_part() const;
  bool fresh(std::int64_t i) const { return seen_[i] >= centers_.count(); }
  void update(std::vector<std::int64_t>* stale, double cutoff);
  void update_block(RowBlock* block, double cutoff, Items& items);
  void meet_panels(RowBlock* block, std::int64_t r, std::int64_t panel);

  Matrix<const float> source_;
  int threads_;
  ScreenSpace space_;
  Screen screen_;
  ScreenRows rows_;
  ScreenPanels centers_;
  std::vector<const float*> center_rows_;
  std::vector<double> squared_;                      // to the nearest centre seen; kPicked for selected rows
  std::vector<std::int64_t> seen_;                   // centres
  std::int64_t updates_ = 0;                         // of rows, by all rises
  std::vector<std::unique_ptr<StoredRows>> stored_;  // what of the rows is on a disk
  std::int64_t bytes_of_a_row_ = 0, page_rows_ = 1;  // there; multiples of so many rows begin on a page
  std::deque<std::vector<float>> own_centers_;
};

}  // namespace mmad
