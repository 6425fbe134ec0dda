// What the search has found for a query.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "cpu/screen.hpp"
#include "mmad/matrix.hpp"

namespace mmad {

struct Candidate {
  double low;  // lower bound of the squared distance
  std::int64_t row;
};

// The k nearest of `candidates` by float64 distance, the lowest rows among equal ones: (squared distance, row), in order.
using Decided = std::vector<std::pair<double, std::int64_t>>;
Decided decide(Matrix<const float> bank, const float* query, std::vector<Candidate>& candidates, std::size_t k);

// What one query has found: the k smallest upper bounds, of which the largest is the limit that no neighbour exceeds,
// and the rows whose lower bounds do not rule them out.
class Findings {
 public:
  explicit Findings(std::int64_t k = 0) : k_(static_cast<std::size_t>(k)) {}

  std::int64_t k() const { return static_cast<std::int64_t>(k_); }

  // The squared distance that a row must not exceed to be of use. Rows come in ascending order and ties go to the lowest:
  // once k rows are at distance 0, none is of use any more.
  double limit() const {
    const double largest = largest_upper();
    return largest == 0.0 ? -1.0 : largest;
  }

  // Rows come in ascending order. One whose distance is at least the limit loses to the k rows before it that are within,
  // equal or not. Returns whether so many are left that they should be settled.
  bool add(Interval squared, std::int64_t row) {
    if (squared.low >= largest_upper()) return false;
    add_upper(squared.high);
    candidates_.push_back({squared.low, row});
    if (candidates_.size() < compact_at_) return false;
    compact();
    return candidates_.size() >= crowd();
  }

  // Decides between the candidates so far: with many rows at one distance, or nearly so, memory stays bounded.
  void settle(Matrix<const float> bank, const float* query) {
    const Decided best = decide(bank, query, candidates_, k_);
    upper_.clear();
    candidates_.clear();
    for (const auto& [squared, row] : best) {
      upper_.push_back(squared);
      candidates_.push_back({squared, row});
    }
    std::make_heap(upper_.begin(), upper_.end());
    compact_at_ = crowd();
  }

  // Takes over what a later range of the bank found for the same query.
  void join(const Findings& other) {
    for (const double value : other.upper_) add_upper(value);
    candidates_.insert(candidates_.end(), other.candidates_.begin(), other.candidates_.end());
  }

  // The candidates that the limit leaves.
  std::vector<Candidate>& contenders() {
    compact();
    return candidates_;
  }

 private:
  double largest_upper() const {
    return upper_.size() == k_ ? upper_.front() : std::numeric_limits<double>::infinity();
  }

  std::size_t crowd() const { return std::max(kCrowd, 4 * k_); }

  void add_upper(double value) {
    if (upper_.size() == k_) {
      if (value >= upper_.front()) return;
      std::pop_heap(upper_.begin(), upper_.end());
      upper_.back() = value;
    } else {
      upper_.push_back(value);
    }
    std::push_heap(upper_.begin(), upper_.end());
  }

  void compact() {
    const double bound = largest_upper();
    const auto beyond = [bound](const Candidate& c) { return c.low > bound; };
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), beyond), candidates_.end());
    compact_at_ = std::max<std::size_t>(256, 2 * candidates_.size());
  }

  static constexpr std::size_t kCrowd = 1024;

  std::size_t k_;
  std::size_t compact_at_ = 256;
  std::vector<double> upper_;  // max-heap
  std::vector<Candidate> candidates_;
};

}  // namespace mmad
