// Selection after a tile of products: keys are compared with their query's threshold in registers; the few below it go
// through a small queue in shared memory to the thread that owns the query.
#pragma once

#include "cuda/product.cuh"
#include "cuda/warp.cuh"

namespace mmad::cuda {

constexpr int kQueueSlots = 8;

// Views of shared memory; rows are those of the query tile.
struct SelectionShared {
  uint2* queue;      // [kQueueSlots][kTileRows]: key, column
  float* screen;     // [kTileRows]: keys below it are looked at
  unsigned* counts;  // [kTileRows]: keys offered in this round
  float* best;       // [k][kTileRows]: the smallest upper bounds

  static std::size_t bytes(int k) { return kTileRows * (kQueueSlots * 8 + 4 + 4 + static_cast<std::size_t>(k) * 4); }

  __device__ __forceinline__ void carve(unsigned char* memory) {
    queue = reinterpret_cast<uint2*>(memory);
    screen = reinterpret_cast<float*>(queue + kQueueSlots * kTileRows);
    counts = reinterpret_cast<unsigned*>(screen + kTileRows);
    best = screen + 2 * kTileRows;
  }
};

// One query's running selection; it lives in the registers of the thread that owns the query's row of the tile.
struct RowOwner {
  QueryBound bound;
  float upper;  // the largest of the k smallest upper bounds seen by this block
  float hint;   // what other blocks know
  int worst;    // where `upper` stands in the list
  int count;
  Candidate* list;
  std::int64_t query;
  bool live;

  __device__ void begin(const ProductTask& task, const SelectionShared& shared, std::int64_t query_, int split,
                        int row) {
    const SearchState& state = task.state;
    query = query_;
    live = query < task.queries.rows;
    upper = live ? kInfinity32 : -kInfinity32;
    hint = kInfinity32;
    worst = 0;
    count = 0;
    list = nullptr;
    if (live) {
      const std::int64_t entry = query * state.splits + split;
      bound = query_bound(task.queries.norm[query], task.queries.residual[query], task.queries.depth_blocks);
      list = state.candidates + entry * state.capacity;
      for (int j = 0; j < state.k; ++j) {
        shared.best[j * kTileRows + row] = task.resume ? state.upper[entry * state.k + j] : kInfinity32;
      }
      if (task.resume) count = state.counts[entry];
      find_worst(state.k, shared, row);
      if (!(task.queries.norm[query] <= kLargestNorm && *task.bank.largest_norm <= kLargestNorm)) {
        // float32 cannot hold the squares: leave this query to float64.
        upper = -kInfinity32;
        count = state.capacity + 1;
      }
    } else {
      bound = {0.0f, 0.0f};
    }
    shared.counts[row] = 0;
  }

  __device__ __forceinline__ float threshold() const { return fminf(upper, hint); }

  __device__ __forceinline__ void refresh_hint(const SearchState& state) {
    if (state.shared != nullptr && live) hint = from_ordered_bits(load_shared_word(state.shared + query));
  }

  // Sets the threshold of a row for the keys of the bank tiles `tile` to `last`.
  __device__ __forceinline__ void set_screen(const Operand& bank, const SelectionShared& shared, int tile, int last,
                                             int row) {
    const float norm = fmaxf(bank.tile_norm[tile], bank.tile_norm[last]);
    const float residual = fmaxf(bank.tile_residual[tile], bank.tile_residual[last]);
    shared.screen[row] = screen_threshold(threshold(), key_error(bound, norm, residual));
  }

  __device__ __forceinline__ void find_worst(int k, const SelectionShared& shared, int row) {
    upper = shared.best[row];
    worst = 0;
    for (int j = 1; j < k; ++j) {
      const float other = shared.best[j * kTileRows + row];
      if (other > upper) {
        upper = other;
        worst = j;
      }
    }
  }

  __device__ void append(Candidate candidate, int capacity) {
    if (count == capacity) {  // drop what the threshold has since ruled out
      const float limit = threshold();
      int kept = 0;
      for (int i = 0; i < capacity; ++i) {
        const Candidate old = list[i];
        if (old.lower <= limit) list[kept++] = old;
      }
      count = kept < capacity ? kept : capacity + 1;
    }
    if (count < capacity) list[count++] = candidate;
  }

  // Takes this row's queue.
  __device__ void drain(const ProductTask& task, const SelectionShared& shared, int tile, int row) {
    const unsigned offered = shared.counts[row];
    if (offered == 0) return;
    shared.counts[row] = 0;
    const int taken = offered < kQueueSlots ? static_cast<int>(offered) : kQueueSlots;
    const float before = upper;
    for (int i = 0; i < taken; ++i) {
      const uint2 entry = shared.queue[i * kTileRows + row];
      const int bank_row = tile * kTileRows + static_cast<int>(entry.y);
      if (bank_row < task.first_row) continue;
      const float key = bit_cast<float>(entry.x);
      const float error = key_error(bound, task.bank.norm[bank_row], task.bank.residual[bank_row]);
      const float lower = subtract_down(key, error);
      if (lower > threshold() || task.found.holds(query, bank_row)) continue;
      append({lower, bank_row}, task.state.capacity);
      const float above = add_up(key, error);
      if (above < upper) {
        shared.best[worst * kTileRows + row] = above;
        find_worst(task.state.k, shared, row);
      }
    }
    if (upper < before && task.state.shared != nullptr) atomicMin(task.state.shared + query, ordered_bits(upper));
  }

  __device__ void finish(const ProductTask& task, const SelectionShared& shared, int split, int row) const {
    if (!live) return;
    const SearchState& state = task.state;
    const std::int64_t entry = query * state.splits + split;
    state.counts[entry] = count;
    for (int j = 0; j < state.k; ++j) state.upper[entry * state.k + j] = shared.best[j * kTileRows + row];
  }
};

// |m|^2 and the factor of the sum for two neighbouring columns.
template <bool kInt8>
struct ColumnPair {
  float squared[2];
  float factor[2];

  __device__ __forceinline__ ColumnPair(const float* columns, const float* scales, int column) {
    const float2 two = *reinterpret_cast<const float2*>(columns + column);
    squared[0] = two.x;
    squared[1] = two.y;
    factor[0] = factor[1] = -2.0f;
    if constexpr (kInt8) {
      const float2 both = *reinterpret_cast<const float2*>(scales + column);
      factor[0] = -2.0f * both.x;
      factor[1] = -2.0f * both.y;
    }
  }

  __device__ __forceinline__ float key(int c, float sum) const { return multiply_add(factor[c], sum, squared[c]); }
};

// The keys in this thread's accumulators: rows first_row + 16 i + 8 h, columns first_column + 8 j + {0, 1}; `columns` (and
// for int8 banks `scales`) are the tile's |m|^2 (and scales) in shared memory. Keys below their row's screen are queued and
// their accumulator set to -infinity, which makes the key +infinity from then on. Returns true if a queue was full: what
// is left has to be offered again.
template <bool kInt8, int kRowGroups, int kColumnGroups>
__device__ __forceinline__ bool offer_keys(float (&sums)[kRowGroups][kColumnGroups][4], const SelectionShared& shared,
                                           const float* columns, const float* scales, int first_row, int first_column) {
  float least[kRowGroups][2];
#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) least[i][0] = least[i][1] = kInfinity32;
#pragma unroll
  for (int j = 0; j < kColumnGroups; ++j) {
    const ColumnPair<kInt8> pair(columns, scales, first_column + 8 * j);
#pragma unroll
    for (int i = 0; i < kRowGroups; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) least[i][e / 2] = fminf(least[i][e / 2], pair.key(e % 2, sums[i][j][e]));
    }
  }
  bool left_over = false;
#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first_row + 16 * i + 8 * h;
      const float limit = shared.screen[row];
      if (!(least[i][h] < limit)) continue;
#pragma unroll
      for (int j = 0; j < kColumnGroups; ++j) {
        const ColumnPair<kInt8> pair(columns, scales, first_column + 8 * j);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float key = pair.key(c, sums[i][j][2 * h + c]);
          if (!(key < limit)) continue;
          const unsigned slot = atomicAdd(&shared.counts[row], 1u);
          if (slot < kQueueSlots) {
            const unsigned column = static_cast<unsigned>(first_column + 8 * j + c);
            shared.queue[slot * kTileRows + row] = uint2{bit_cast<unsigned>(key), column};
            sums[i][j][2 * h + c] = -kInfinity32;
          } else {
            left_over = true;
          }
        }
      }
    }
  }
  return left_over;
}

}  // namespace mmad::cuda
