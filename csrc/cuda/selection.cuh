// Selection after a tile of products: keys are compared with their query's threshold in registers; the few below it go
// through a small queue in shared memory to the thread that owns the query.
#pragma once

#include "cuda/product.cuh"
#include "cuda/warp.cuh"

namespace mmad::cuda {

// An upper bound in a row's list: its ordered bits (host_device.hpp) with the last five rounded up, and in their place
// the entry's number, so that the largest word tells the worst bound and where it stands.
constexpr std::uint32_t kEntryBits = kLargestK - 1;
constexpr std::uint32_t kEmptyEntry = 0xFF7FFFE0u;  // of the largest finite number: no bound yet

__device__ __forceinline__ std::uint32_t pack_bound(float above, int entry) {
  return (min(ordered_bits(above), kEmptyEntry) & ~kEntryBits) | static_cast<std::uint32_t>(entry);
}

__device__ __forceinline__ float unpack_bound(std::uint32_t word) {
  return word < kEmptyEntry ? from_ordered_bits(word | kEntryBits) : kInfinity32;
}

// Views of shared memory; rows are those of the query tile.
struct SelectionShared {
  uint2* queue;         // [slots][kTileRows]: key, column
  float* screen;        // [kTileRows]: keys below it are looked at
  float* error;         // [kTileRows]: how far a key of the tile may be from its T
  unsigned* counts;     // [kTileRows]: keys offered in this round
  std::uint32_t* best;  // [k][kTileRows]: the smallest upper bounds, packed
  unsigned slots;

  static std::size_t bytes(int k, int slots) {
    return kTileRows * (static_cast<std::size_t>(slots) * 8 + 12 + static_cast<std::size_t>(k) * 4);
  }

  __device__ __forceinline__ void carve(unsigned char* memory, int slots_) {
    slots = static_cast<unsigned>(slots_);
    queue = reinterpret_cast<uint2*>(memory);
    screen = reinterpret_cast<float*>(queue + slots_ * kTileRows);
    error = screen + kTileRows;
    counts = reinterpret_cast<unsigned*>(error + kTileRows);
    best = counts + kTileRows;
  }
};

// What bounds the errors of all keys of some bank tiles.
struct TileBound {
  float norm = 0.0f;
  float residual = 0.0f;

  __device__ __forceinline__ TileBound with(const TileBound& other) const {
    return {fmaxf(norm, other.norm), fmaxf(residual, other.residual)};
  }
};

__device__ __forceinline__ TileBound tile_bound(const Operand& bank, int tile) {
  return {bank.tile_norm[tile], bank.tile_residual[tile]};
}

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
        shared.best[j * kTileRows + row] = pack_bound(task.resume ? state.upper[entry * state.k + j] : kInfinity32, j);
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

  // What other blocks know: the load may be on its way while others do something else, take_hint waits for it.
  __device__ __forceinline__ std::uint32_t known_bound(const SearchState& state) const {
    return state.shared != nullptr && live ? load_shared_word(state.shared + query) : ordered_bits(kInfinity32);
  }

  __device__ __forceinline__ void take_hint(std::uint32_t known) { hint = from_ordered_bits(known); }

  // Sets the threshold of a row for the keys of the bank tiles that `tiles` bounds.
  __device__ __forceinline__ void set_screen(const TileBound& tiles, const SelectionShared& shared, int row) {
    const float error = key_error(bound, tiles.norm, tiles.residual);
    shared.error[row] = error;
    shared.screen[row] = screen_threshold(threshold(), error);
  }

  __device__ __forceinline__ void find_worst(int k, const SelectionShared& shared, int row) {
    std::uint32_t largest = 0;
#pragma unroll 8
    for (int j = 0; j < k; ++j) largest = max(largest, shared.best[j * kTileRows + row]);
    worst = static_cast<int>(largest & kEntryBits);
    upper = unpack_bound(largest);
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

  // Takes one key of this row, with the norm and the residual of its bank row.
  __device__ __forceinline__ void take(const ProductTask& task, const SelectionShared& shared, int row, float key,
                                       int bank_row, float norm, float residual) {
    if (bank_row < task.first_row) return;
    const float error = key_error(bound, norm, residual);
    const float lower = subtract_down(key, error);
    if (lower > threshold() || task.found.holds(query, bank_row)) return;
    append({lower, bank_row}, task.state.capacity);
    const float above = add_up(key, error);
    if (above < upper) {
      shared.best[worst * kTileRows + row] = pack_bound(above, worst);
      find_worst(task.state.k, shared, row);
    }
  }

  // Takes this row's queue, a few keys at a time: what has to be loaded for them is on its way together. The norms and
  // residuals are those of the bank rows from `tile` on.
  __device__ void drain(const ProductTask& task, const SelectionShared& shared, int tile, const float* bank_norms,
                        const float* bank_residuals, int row) {
    constexpr unsigned kTogether = 4;
    const unsigned offered = shared.counts[row];
    if (offered == 0) return;
    shared.counts[row] = 0;
    const unsigned taken = min(offered, shared.slots);
    const float before = upper;
    for (unsigned start = 0; start < taken; start += kTogether) {
      float keys[kTogether], norms[kTogether], residuals[kTogether];
      int rows[kTogether];
#pragma unroll
      for (unsigned j = 0; j < kTogether; ++j) {
        const uint2 entry = shared.queue[min(start + j, taken - 1) * kTileRows + row];
        rows[j] = tile * kTileRows + static_cast<int>(entry.y);
        keys[j] = bit_cast<float>(entry.x);
        norms[j] = bank_norms[entry.y];
        residuals[j] = bank_residuals[entry.y];
      }
#pragma unroll
      for (unsigned j = 0; j < kTogether; ++j) {
        if (start + j < taken) take(task, shared, row, keys[j], rows[j], norms[j], residuals[j]);
      }
    }
    if (upper < before && task.state.shared != nullptr) atomicMin(task.state.shared + query, ordered_bits(upper));
  }

  __device__ void finish(const ProductTask& task, const SelectionShared& shared, int split, int row) const {
    if (!live) return;
    const SearchState& state = task.state;
    const std::int64_t entry = query * state.splits + split;
    state.counts[entry] = count;
    for (int j = 0; j < state.k; ++j) {
      state.upper[entry * state.k + j] = unpack_bound(shared.best[j * kTileRows + row]);
    }
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

__device__ __forceinline__ float quad_min(float value) {  // of the four lanes that share rows of the accumulators
  value = fminf(value, __shfl_xor_sync(kFullWarp, value, 1));
  return fminf(value, __shfl_xor_sync(kFullWarp, value, 2));
}

__device__ __forceinline__ int quad_sum(int value) {
  value += __shfl_xor_sync(kFullWarp, value, 1);
  return value + __shfl_xor_sync(kFullWarp, value, 2);
}

// An upper bound of the k-th smallest of the keys of which a quad holds these minima of disjoint groups: k groups whose
// minima are at most x hold k keys that are at most x. Bisection between the least and the largest minimum; +infinity if
// fewer than k groups hold a finite key.
template <int kGroups>
__device__ __forceinline__ float kth_smallest_bound(const float (&minima)[kGroups], int k) {
  float low = kInfinity32, high = -kInfinity32;
  int finite = 0;
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    low = fminf(low, minima[g]);
    if (!(minima[g] < kInfinity32)) continue;
    high = fmaxf(high, minima[g]);
    ++finite;
  }
  low = quad_min(low);
  high = -quad_min(-high);
  finite = quad_sum(finite);
  for (int i = 0; i < 12; ++i) {
    const float middle = 0.5f * low + 0.5f * high;
    int reached = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) reached += minima[g] <= middle ? 1 : 0;
    if (quad_sum(reached) >= k) {
      high = middle;
    } else {
      low = middle;
    }
  }
  return finite < k ? kInfinity32 : high;
}

// Limits of the keys that can be among their row's k smallest, from one quad's keys of the tile alone: while a list is
// empty its row's screen lets everything pass. A row's k-th smallest T is at most the k-th smallest of these keys and its
// error. Holds only where every row of the tile is searched. Layout and arguments as in offer_keys.
template <bool kInt8, int kRowGroups, int kColumnGroups>
__device__ __forceinline__ void limit_keys(float (&limits)[kRowGroups][2],
                                           const float (&sums)[kRowGroups][kColumnGroups][4],
                                           const SelectionShared& shared, const float* columns, const float* scales,
                                           int first_row, int first_column, int k) {
  constexpr int kGroups = 16;
  constexpr int kGroupKeys = kColumnGroups * 2 / kGroups;
#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float minima[kGroups];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) minima[g] = kInfinity32;
#pragma unroll
      for (int j = 0; j < kColumnGroups; ++j) {
        const ColumnPair<kInt8> pair(columns, scales, first_column + 8 * j);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& least = minima[(2 * j + c) / kGroupKeys];
          least = fminf(least, pair.key(c, sums[i][j][2 * h + c]));
        }
      }
      const float error = shared.error[first_row + 16 * i + 8 * h];
      limits[i][h] = screen_threshold(add_up(kth_smallest_bound(minima, k), error), error);
    }
  }
}

// Limits of a tile's keys: those of limit_keys where it is the `first` of empty lists, else none. For one neighbour
// offer_keys has them of every tile.
template <bool kInt8, int kRowGroups, int kColumnGroups>
__device__ __forceinline__ void set_limits(float (&limits)[kRowGroups][2], const ProductTask& task, int tile,
                                           bool first, const float (&sums)[kRowGroups][kColumnGroups][4],
                                           const SelectionShared& shared, const float* columns, const float* scales,
                                           int first_row, int first_column) {
#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) limits[i][0] = limits[i][1] = kInfinity32;
  if (first && !task.resume && task.state.k > 1 && task.searches_all_of(tile)) {
    limit_keys<kInt8>(limits, sums, shared, columns, scales, first_row, first_column, task.state.k);
  }
}

// The keys in this thread's accumulators: rows first_row + 16 i + 8 h, columns first_column + 8 j + {0, 1}; `columns` (and
// for int8 banks `scales`) are the tile's |m|^2 (and scales) in shared memory. Keys below their row's screen and limit are
// queued and their accumulator set to -infinity, which makes the key +infinity from then on. Returns true if a queue was
// full: what is left has to be offered again.
template <bool kInt8, int kRowGroups, int kColumnGroups>
__device__ __forceinline__ bool offer_keys(float (&sums)[kRowGroups][kColumnGroups][4], const SelectionShared& shared,
                                           const float (&limits)[kRowGroups][2], bool nearest, const float* columns,
                                           const float* scales, int first_row, int first_column) {
  constexpr int kPartGroups = 4;  // column groups that are looked through together: most parts hold no key below
  constexpr int kParts = kColumnGroups / kPartGroups;
  float least[kRowGroups][2][kParts];
#pragma unroll
  for (int p = 0; p < kParts; ++p) {
#pragma unroll
    for (int i = 0; i < kRowGroups; ++i) least[i][0][p] = least[i][1][p] = kInfinity32;
#pragma unroll
    for (int j = p * kPartGroups; j < (p + 1) * kPartGroups; ++j) {
      const ColumnPair<kInt8> pair(columns, scales, first_column + 8 * j);
#pragma unroll
      for (int i = 0; i < kRowGroups; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          least[i][e / 2][p] = fminf(least[i][e / 2][p], pair.key(e % 2, sums[i][j][e]));
        }
      }
    }
  }
  bool left_over = false;
#pragma unroll
  for (int i = 0; i < kRowGroups; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = first_row + 16 * i + 8 * h;
      float limit = fminf(shared.screen[row], limits[i][h]);
      float least_of_row = least[i][h][0];
#pragma unroll
      for (int p = 1; p < kParts; ++p) least_of_row = fminf(least_of_row, least[i][h][p]);
      if (nearest) {
        const float error = shared.error[row];
        limit = fminf(limit, screen_threshold(add_up(quad_min(least_of_row), error), error));
      }
      if (!(least_of_row < limit)) continue;
#pragma unroll
      for (int p = 0; p < kParts; ++p) {
        if (!(least[i][h][p] < limit)) continue;
#pragma unroll
        for (int j = p * kPartGroups; j < (p + 1) * kPartGroups; ++j) {
          const ColumnPair<kInt8> pair(columns, scales, first_column + 8 * j);
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            const float key = pair.key(c, sums[i][j][2 * h + c]);
            if (!(key < limit)) continue;
            const unsigned slot = atomicAdd(&shared.counts[row], 1u);
            if (slot < shared.slots) {
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
  }
  return left_over;
}

}  // namespace mmad::cuda
