// The product stage that k-NN search and k-centre selection share: every query against a range of bank tiles, the
// squared distances bounded in registers, and of each query only the k smallest upper bounds and the few rows that
// could still be among its k nearest kept. The matrix of distances is never written.
#pragma once

#include <cstdint>

#include "cuda/device.cuh"
#include "mmad/cuda_device.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

// A bank row that may be a neighbour: lower bound of T(q, m) (cuda_operand.hpp) and the row.
struct Candidate {
  float lower;
  std::int32_t row;
};

constexpr int kLargestK = 32;

// State of the search, one entry a (query, split). Row q of a split s: counts[q * splits + s], and so on.
struct SearchState {
  float* upper = nullptr;           // k entries: the smallest upper bounds of T, in no order
  Candidate* candidates = nullptr;  // `capacity` entries
  std::int32_t* counts = nullptr;   // candidates kept; capacity + 1 where they did not fit
  std::uint32_t* shared =
      nullptr;  // one entry per query or null: ordered_bits of the least k-th upper bound of all splits
  int k = 1;
  int splits = 1;
  int last_splits = 1;  // of the queries from last_query on: the last tile may have fewer
  std::int64_t last_query = 0;
  int capacity = 0;

  __device__ __forceinline__ int splits_of(std::int64_t query) const {
    return query < last_query ? splits : last_splits;
  }
};

// Rows that a query has found already, and wants no more.
struct FoundRows {
  const std::int64_t* rows = nullptr;  // query q: `count` entries from q * stride on
  std::int64_t stride = 0;
  int count = 0;

  __device__ __forceinline__ bool holds(std::int64_t query, std::int64_t row) const {
    for (int i = 0; i < count; ++i) {
      if (rows[query * stride + i] == row) return true;
    }
    return false;
  }
};

struct ProductTask {
  Operand queries;
  Operand bank;
  SearchState state;
  FoundRows found;
  int first_tile = 0;  // bank tiles [first_tile, last_tile)
  int last_tile = 0;
  int first_row = 0;    // rows of the first tile before this one are left out
  bool resume = false;  // go on from the state; otherwise start it

  // Whether every row of a tile may be among the neighbours: then the keys of the tile alone bound the k-th distance.
  __device__ __forceinline__ bool searches_all_of(int tile) const {
    return found.count == 0 && first_row <= tile * kTileRows;
  }
  __device__ __forceinline__ bool wants_nearest_of(int tile) const { return state.k == 1 && searches_all_of(tile); }
};

// Whether kernels run there as compiled for sm_90a, with what only that has; not so from PTX of an older one.
bool runs_sm90a(const DeviceLimits& limits);

inline Launch chained_launch(const DeviceLimits& limits) {
  return runs_sm90a(limits) ? Launch::kChained : Launch::kPlain;
}

// A block's part of the work: a range of bank tiles for one query tile.
struct BlockShare {
  int query_tile, begin, end, split;

  __device__ __forceinline__ BlockShare(const ProductTask& task, int block) {
    const int full = task.queries.tiles - 1;  // the blocks of the last tile come last
    const bool last = block >= full * task.state.splits;
    const int splits = last ? task.state.last_splits : task.state.splits;
    query_tile = last ? full : block % full;
    split = last ? block - full * task.state.splits : block / full;
    const std::int64_t tiles = task.last_tile - task.first_tile;
    begin = task.first_tile + static_cast<int>(tiles * split / splits);
    end = task.first_tile + static_cast<int>(tiles * (split + 1) / splits);
  }
};

inline int product_blocks(const ProductTask& task) {
  return (task.queries.tiles - 1) * task.state.splits + task.state.last_splits;
}

// Numbers of blocks that share a query tile, and the last one, so that the device is full: at least 1.
struct Splits {
  int all = 1;
  int last = 1;
};
Splits choose_splits(std::int64_t queries, const Operand& bank, const DeviceLimits& limits);

// Queues the kernel. Rows of the bank that hold squared = +infinity are skipped.
void run_product(const ProductTask& task, const DeviceLimits& limits, Stream stream);

// The same with the sm_90a matrix unit, for bfloat16 banks; run_product calls it where it applies.
void run_product_wgmma(const ProductTask& task, Stream stream);

}  // namespace mmad::cuda
