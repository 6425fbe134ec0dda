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
  int capacity = 0;
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
};

// Whether kernels run there as compiled for sm_90a, with what only that has; not so from PTX of an older one.
bool runs_sm90a(const DeviceLimits& limits);

// Number of blocks that share a query tile so that the device is full. Returns at least 1.
int choose_splits(int query_tiles, const Operand& bank, const DeviceLimits& limits);

// Queues the kernel. Rows of the bank that hold squared = +infinity are skipped.
void run_product(const ProductTask& task, const DeviceLimits& limits, Stream stream);

// The same with the sm_90a matrix unit, for bfloat16 banks; run_product calls it where it applies.
void run_product_wgmma(const ProductTask& task, Stream stream);

}  // namespace mmad::cuda
