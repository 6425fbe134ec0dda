// How thread blocks that run together agree on the best of what each of them offers, over and over: with a message of 16
// bytes from every block to every other, without fences or atomics.
#pragma once

#include "cuda/warp.cuh"

namespace mmad::cuda {

constexpr int kAwaited = 5;  // offers of other blocks that a lane waits for at a time

struct Offer {  // a row that may be picked: the largest m, then the lowest row; m = -1 offers nothing
  double m;
  int row;

  __device__ __forceinline__ bool beats(const Offer& other) const {
    return m > other.m || (m == other.m && row < other.row);
  }
};

__device__ __forceinline__ Offer no_offer() { return {-1.0, 0x7FFFFFFF}; }

// To all lanes. The bits of m order as a signed integer does: -1 is the only negative value. So its upper half decides
// first, then the lower half among those that share the upper, then the row.
__device__ __forceinline__ Offer warp_best(const Offer& offer) {
  const std::uint64_t bits = bit_cast<std::uint64_t>(offer.m);
  const int high = static_cast<int>(bits >> 32);
  const std::uint32_t low = static_cast<std::uint32_t>(bits);
  const int best_high = __reduce_max_sync(kFullWarp, high);
  const std::uint32_t best_low = __reduce_max_sync(kFullWarp, high == best_high ? low : 0u);
  const bool holds = high == best_high && low == best_low;
  const std::uint32_t row = __reduce_min_sync(kFullWarp, holds ? static_cast<std::uint32_t>(offer.row) : 0x7FFFFFFFu);
  const std::uint64_t best = static_cast<std::uint64_t>(static_cast<std::uint32_t>(best_high)) << 32 | best_low;
  return {bit_cast<double>(best), static_cast<int>(row)};
}

// An offer on its way between blocks: 64 bits of m and 32 of the row in two words, and the tag of the round in the low 16
// bits of each, so that a word with the right tag is all a reader needs to see: no fence, one way through the
// second-level cache. Every block writes its place of a round's half of the exchange in every other round. So before the
// right tag a reader can only see the one of two rounds ago, and 16 bits are more than enough.
constexpr std::uint64_t kTagBits = 0xFFFFu;

__device__ __forceinline__ void publish(SharedPair* place, const Offer& offer, std::uint32_t round) {
  const std::uint64_t bits = bit_cast<std::uint64_t>(offer.m);
  const std::uint64_t row = static_cast<std::uint32_t>(offer.row);
  const std::uint64_t tag = round & kTagBits;
  store_shared_pair(place, {(bits & ~kTagBits) | tag, bits << 48 | row << 16 | tag});
}

__device__ __forceinline__ bool arrived(const SharedPair& pair, std::uint32_t round) {
  const std::uint64_t tag = round & kTagBits;
  return (pair.x & kTagBits) == tag && (pair.y & kTagBits) == tag;
}

__device__ __forceinline__ Offer offer_in(const SharedPair& pair) {
  return {bit_cast<double>((pair.x & ~kTagBits) | pair.y >> 48),
          static_cast<int>(static_cast<std::uint32_t>(pair.y >> 16))};
}

// One warp: the best of the offers that all blocks make in a round. The words that a lane waits for travel together.
__device__ inline Offer await_offers(const SharedPair* places, int blocks, std::uint32_t round) {
  Offer best = no_offer();
  for (int first = lane_id(); first < blocks; first += kAwaited * kWarp) {
    unsigned missing = 0;
#pragma unroll
    for (int j = 0; j < kAwaited; ++j) missing |= first + j * kWarp < blocks ? 1u << j : 0u;
    while (missing != 0) {
      SharedPair pairs[kAwaited];
#pragma unroll
      for (int j = 0; j < kAwaited; ++j) {
        if (missing >> j & 1u) pairs[j] = load_shared_pair(places + first + j * kWarp);
      }
#pragma unroll
      for (int j = 0; j < kAwaited; ++j) {
        if ((missing >> j & 1u) == 0 || !arrived(pairs[j], round)) continue;
        missing &= ~(1u << j);
        const Offer offer = offer_in(pairs[j]);
        if (offer.beats(best)) best = offer;
      }
      if (missing != 0) wait_a_moment();
    }
  }
  __syncwarp();
  return warp_best(best);
}

}  // namespace mmad::cuda
