// The largest `wanted` of N entries by (key, then lowest index), found as a threshold: digit by digit from the top, one
// kernel a digit, each a histogram whose last block chooses the next digit. Keys are below 2^63; key 0 is never taken.
#pragma once

#include "cuda/warp.cuh"

namespace mmad::cuda {

constexpr int kSelectPasses = 9;  // 63 bits of the key and 32 of the index, up to 11 per pass
constexpr int kSelectBins = 2048;
constexpr int kSelectThreads = 256;

// Where a (key, inverted index) pair stands: compared lexicographically.
struct SelectEntry {
  unsigned long long key;
  std::uint32_t inverted;  // ~index: the lowest index is the largest

  MMAD_HD bool at_least(const SelectEntry& other) const {
    return key > other.key || (key == other.key && inverted >= other.inverted);
  }
};

// Digit `pass` of an entry, and whether the digits above it agree with a prefix.
MMAD_HD inline int select_digit(const SelectEntry& entry, int pass) {
  if (pass < 5) return static_cast<int>((entry.key >> (52 - 11 * pass)) & 2047u);
  if (pass == 5) return static_cast<int>(entry.key & 255u);
  if (pass < 8) return static_cast<int>((entry.inverted >> (21 - 11 * (pass - 6))) & 2047u);
  return static_cast<int>(entry.inverted & 1023u);
}

MMAD_HD inline bool select_matches(const SelectEntry& entry, const SelectEntry& prefix, int pass) {
  if (pass <= 5) return (entry.key >> (63 - 11 * pass)) == (prefix.key >> (63 - 11 * pass));
  if (entry.key != prefix.key) return false;
  return pass == 6 || (entry.inverted >> (32 - 11 * (pass - 6))) == (prefix.inverted >> (32 - 11 * (pass - 6)));
}

MMAD_HD inline void select_extend(SelectEntry& prefix, int pass, int digit) {
  if (pass < 5) prefix.key |= static_cast<unsigned long long>(digit) << (52 - 11 * pass);
  if (pass == 5) prefix.key |= static_cast<unsigned long long>(digit);
  if (pass == 6 || pass == 7) prefix.inverted |= static_cast<std::uint32_t>(digit) << (21 - 11 * (pass - 6));
  if (pass == 8) prefix.inverted |= static_cast<std::uint32_t>(digit);
}

struct SelectState {      // zero before the first pass
  SelectEntry threshold;  // after the last pass: entries at least this are taken
  int missing;            // entries still to be taken below the prefix
  int done;
  unsigned tickets;
  int histogram[kSelectBins];
};

// Queues the passes: state->threshold is then the least entry that is taken. At least `wanted` keys are not 0.
void run_select(const unsigned long long* keys, std::int64_t count, int wanted, SelectState* state, int blocks,
                cudaStream_t stream);

}  // namespace mmad::cuda
