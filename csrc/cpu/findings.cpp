#include "cpu/findings.hpp"

#include <tuple>

#include "mmad/operand.hpp"

namespace mmad {

Decided decide(Matrix<const float> bank, const float* query, std::vector<Candidate>& candidates, std::size_t k) {
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return std::tie(a.low, a.row) < std::tie(b.low, b.row); });
  Decided best;  // max-heap
  for (const Candidate& candidate : candidates) {
    // And so for all that follow.
    if (best.size() == k && std::make_pair(candidate.low, candidate.row) > best.front()) break;
    best.emplace_back(squared_distance(query, bank.row(candidate.row), bank.cols), candidate.row);
    std::push_heap(best.begin(), best.end());
    if (best.size() <= k) continue;
    std::pop_heap(best.begin(), best.end());
    best.pop_back();
  }
  std::sort_heap(best.begin(), best.end());
  return best;
}

}  // namespace mmad
