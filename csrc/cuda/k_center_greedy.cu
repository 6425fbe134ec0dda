// Exact greedy k-centre in blocks.
//
// For every row i let m_i be its squared distance to the nearest centre, known as an upper bound hi_i or exactly.
// A block of picks goes like this:
//   1. The pool: the T rows with the largest (hi, lowest index). Their m is decided in float64.
//   2. Rows outside with hi >= the largest m of the pool are decided too. So the row that the textbook loop would pick
//      next has an exact m, and is in the next pool if it is not in this one: there is always progress.
//   3. tau: the largest (hi, lowest index) outside. As long as the pool's largest (m, lowest index) is above tau in this
//      order, it is the textbook loop's pick, because m outside only falls. One cooperative kernel makes these picks: every
//      block of threads holds some rows of the pool in shared memory and lowers their m at each pick.
//   4. All rows meet the new centres (k_center_rows.cuh), which lowers hi, and leaves what m is decided from in 1 and 2.
// Nothing in the result depends on T: every decision is made on float64 distances computed from differences.
#include <algorithm>
#include <cmath>

#include "cuda/exchange.cuh"
#include "cuda/k_center_rows.cuh"
#include "mmad/cuda_k_center_greedy.hpp"

namespace mmad::cuda {

namespace {

// A pick is a chain of waits: for the offers of all blocks, for the pick's values, for the rows' distances to it. So one
// warp of a block, the messenger, does nothing but what every block waits for, and the others have the rows. Shared
// memory bounds their part: a warp reads the pick once for all its rows, so few warps with several rows each read least.
constexpr int kGreedyWarps = 8;           // that have rows
constexpr int kMessenger = kGreedyWarps;  // the warp behind them
constexpr int kGreedyThreads = (kGreedyWarps + 1) * kWarp;
constexpr int kGreedyGroup = 5;                           // rows that a warp works on at a time, at most
constexpr int kRowsABlock = kGreedyWarps * kGreedyGroup;  // of the pool, by default
constexpr int kCopies = 4;                                // of a block's offer, so that fewer blocks read one place
constexpr int kRowLoads = 9;                              // of a lane, of a row's values, that travel together

enum StopReason : int { kUncertain = 0, kFull = 1, kCovered = 2 };

// Numbers that the host reads after a block of picks.
struct Progress {
  long long picks;
  int reason;
  double largest;  // the largest m left (kFull, kCovered)
};

struct PoolState {
  SelectState select;
  int count;                   // rows of the pool written so far
  unsigned long long largest;  // bits of the largest m of the pool
  unsigned tickets;
  SelectEntry outside;  // tau; key 0 where nothing is outside
};

// Writes the pool's rows, in any order.
__global__ void __launch_bounds__(kSelectThreads) pool_kernel(Rows rows, PoolState* pool, std::int32_t* pool_rows) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (row >= rows.operand.rows) return;
  const SelectEntry entry{rows.keys[row], ~static_cast<std::uint32_t>(row)};
  if (entry.key != 0 && entry.at_least(pool->select.threshold)) {
    pool_rows[atomicAdd(&pool->count, 1)] = static_cast<std::int32_t>(row);
  }
}

__global__ void __launch_bounds__(kRowWarps* kWarp)
    decide_pool_kernel(Rows rows, Centers centers, std::int64_t center_count, PoolState* pool,
                       const std::int32_t* pool_rows, int pool_size) {
  const int slot = static_cast<int>(blockIdx.x) * kRowWarps + warp_id();
  if (slot >= pool_size) return;
  const double m = decide<FusedDistance>(rows, centers, center_count, pool_rows[slot]);
  if (lane_id() == 0) atomicMax(&pool->largest, bit_cast<unsigned long long>(m));
}

__device__ __forceinline__ SelectEntry warp_largest(SelectEntry entry) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const SelectEntry other{__shfl_xor_sync(kFullWarp, entry.key, step),
                            __shfl_xor_sync(kFullWarp, entry.inverted, step)};
    if (other.at_least(entry)) entry = other;
  }
  return entry;
}

// Decides the rows outside the pool that may exceed its largest m, and finds tau. `partial` holds one entry per block.
__global__ void __launch_bounds__(kRowWarps* kWarp, 2)
    outside_kernel(Rows rows, Centers centers, std::int64_t center_count, PoolState* pool, SelectEntry* partial) {
  MMAD_DYNAMIC_SHARED(memory);
  auto* of_warps = reinterpret_cast<SelectEntry*>(memory);  // [kRowWarps]
  int* last = reinterpret_cast<int*>(of_warps + kRowWarps);
  const int lane = lane_id();
  const unsigned long long limit = pool->largest + 1;  // as a key
  const SelectEntry threshold = pool->select.threshold;
  const int warp = static_cast<int>(blockIdx.x) * kRowWarps + warp_id();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kRowWarps * kWarp;
  SelectEntry best{0, 0};
  for (std::int64_t base = static_cast<std::int64_t>(warp) * kWarp; base < rows.operand.rows; base += step) {
    const std::int64_t row = base + lane;
    SelectEntry entry{row < rows.operand.rows ? rows.keys[row] : 0, ~static_cast<std::uint32_t>(row)};
    if (entry.at_least(threshold)) entry.key = 0;  // in the pool
    const bool open = entry.key >= limit && rows.state.counts[row] != 0;
    unsigned todo = __ballot_sync(kFullWarp, open);
    while (todo != 0) {
      const int next = __ffs(static_cast<int>(todo)) - 1;
      todo &= todo - 1;
      const double m = decide<FusedDistance>(rows, centers, center_count, base + next);
      if (lane == next) entry.key = key_of(m);
    }
    if (entry.key != 0 && entry.at_least(best)) best = entry;
  }
  best = warp_largest(best);
  if (lane == 0) of_warps[warp_id()] = best;
  __syncthreads();
  if (warp_id() != 0) return;
  best = warp_largest(lane < kRowWarps ? of_warps[lane] : SelectEntry{0, 0});
  if (lane == 0) {
    partial[blockIdx.x] = best;
    __threadfence();
    *last = atomicAdd(&pool->tickets, 1u) == gridDim.x - 1;
  }
  __syncwarp();
  if (*last == 0) return;
  __threadfence();
  const volatile SelectEntry* all = partial;
  best = {0, 0};
  for (int i = lane; i < static_cast<int>(gridDim.x); i += kWarp) {
    const SelectEntry other{all[i].key, all[i].inverted};
    if (other.key != 0 && other.at_least(best)) best = other;
  }
  best = warp_largest(best);
  if (lane == 0) pool->outside = best;
}

// ---- the picks -----------------------------------------------------------------------------------------------------

struct GreedyTask {
  Rows rows;
  PoolState* pool;
  const std::int32_t* pool_rows;
  int pool_size;
  int rows_a_block;
  std::int64_t picked;  // before this block
  std::int64_t count;   // to be picked in all
  double radius;
  std::int64_t* picks;
  double* radii;
  SharedPair* exchange;       // [2][kCopies][blocks]
  std::uint32_t first_round;  // one more than the last of the block before
  Progress* progress;
};

struct GreedyShared {
  double* m;          // without the distances that are put off
  double* distances;  // to the last pick, of the rows where that was put off
  float* above;       // bounds of these from above; -1 for the other rows
  std::int32_t* row;
  Offer* offers;  // one per warp with rows, and the best of all blocks
  float* center;  // the last pick
  float* values;  // [rows_a_block][padded dim]

  static std::size_t bytes(int rows, int padded) {
    return static_cast<std::size_t>(rows) * (8 + 8 + 4 + 4) + (kGreedyWarps + 1) * sizeof(Offer) +
           (static_cast<std::size_t>(rows) + 1) * padded * 4;
  }

  __device__ __forceinline__ void carve(unsigned char* memory, int rows, int padded) {
    values = reinterpret_cast<float*>(memory);
    center = values + static_cast<std::size_t>(rows) * padded;
    offers = reinterpret_cast<Offer*>(center + padded);
    m = reinterpret_cast<double*>(offers + kGreedyWarps + 1);
    distances = m + rows;
    above = reinterpret_cast<float*>(distances + rows);
    row = reinterpret_cast<std::int32_t*>(above + rows);
  }
};

MMAD_HD inline int padded_dim(int dim) { return (dim + 3) / 4 * 4; }

// One warp: copies a row to shared memory, zeros behind it.
__device__ __forceinline__ void copy_row(float* to, const float* from, int dim) {
  if (dim % 4 == 0) {
    for (int first = lane_id() * 4; first < dim; first += kRowLoads * kWarp * 4) {
      float4 x[kRowLoads];
#pragma unroll
      for (int j = 0; j < kRowLoads; ++j) {
        const int i =
            first + j * kWarp * 4;  // behind the end the last four again: a load without a condition waits for none
        x[j] = *reinterpret_cast<const float4*>(from + (i < dim ? i : dim - 4));
      }
#pragma unroll
      for (int j = 0; j < kRowLoads; ++j) {
        const int i = first + j * kWarp * 4;
        if (i < dim) *reinterpret_cast<float4*>(to + i) = x[j];
      }
    }
  } else {
    for (int i = lane_id(); i < padded_dim(dim); i += kWarp) to[i] = i < dim ? from[i] : 0.0f;
  }
}

// What the rows of a block know in a round: the last pick, if there is one, in shared memory.
struct GreedyRound {
  std::uint32_t number;
  int owned;  // rows of the block
  int dim;
  int padded;

  __device__ __forceinline__ double distance(const GreedyShared& shared, int slot) const {
    return exact_squared_distance(shared.values + static_cast<std::size_t>(slot) * padded, shared.center, dim);
  }
};

// The whole block: the values of the last pick. A thread has one load where it can: every instruction here is waited for.
__device__ __forceinline__ void copy_pick(const GreedyShared& shared, const float* from, const GreedyRound& round) {
  const int thread = static_cast<int>(threadIdx.x);
  if (round.dim % 4 == 0) {
#pragma unroll 1
    for (int i = thread * 4; i < round.dim; i += kGreedyThreads * 4) {
      *reinterpret_cast<float4*>(shared.center + i) = *reinterpret_cast<const float4*>(from + i);
    }
  } else {
#pragma unroll 1
    for (int i = thread; i < round.padded; i += kGreedyThreads) shared.center[i] = i < round.dim ? from[i] : 0.0f;
  }
}

// The messenger: this block's best offer. Of the rows whose distance to the last pick has been put off, only those may
// be better than the others' best whose bound is not below it; they are few, mostly none.
__device__ Offer best_of_block(const GreedyShared& shared, const GreedyRound& round) {
  const int lane = lane_id();
  Offer best = warp_best(lane < kGreedyWarps ? shared.offers[lane] : no_offer());
  for (int first = 0; first < round.owned; first += kWarp) {
    const int slot = first + lane;
    const float above = slot < round.owned ? shared.above[slot] : -1.0f;
    unsigned todo = __ballot_sync(kFullWarp, above >= 0.0f && static_cast<double>(above) >= best.m);
    while (todo != 0) {
      const int next = first + __ffs(static_cast<int>(todo)) - 1;
      todo &= todo - 1;
      const double distance = round.distance(shared, next);
      const double m = shared.m[next];
      const Offer offer{distance < m ? distance : m, shared.row[next]};
      if (offer.beats(best)) best = offer;
    }
  }
  return best;
}

// A warp with rows: the distances that have been put off.
__device__ void settle_rows(const GreedyShared& shared, const GreedyRound& round) {
  for (int first = warp_id(); first < round.owned; first += kGreedyWarps * kWarp) {
    const int mine = first + lane_id() * kGreedyWarps;
    unsigned todo = __ballot_sync(kFullWarp, mine < round.owned && shared.above[mine] >= 0.0f);
    while (todo != 0) {
      const int slot = first + (__ffs(static_cast<int>(todo)) - 1) * kGreedyWarps;
      todo &= todo - 1;
      const double distance = round.distance(shared, slot);
      if (lane_id() == 0) shared.distances[slot] = distance;
    }
  }
}

// The best offer of all blocks, to all threads. A block's threads meet before and after the messenger's way to the other
// blocks and back.
__device__ Offer exchange_offers(const GreedyTask& task, const GreedyShared& shared, const GreedyRound& round) {
  __syncthreads();
  if (warp_id() != kMessenger) {
    settle_rows(shared, round);
  } else {
    const int blocks = static_cast<int>(gridDim.x);
    const int block = static_cast<int>(blockIdx.x);
    SharedPair* places = task.exchange + static_cast<std::size_t>(round.number & 1u) * kCopies * blocks;
    const Offer best_here = best_of_block(shared, round);
    if (lane_id() < kCopies) publish(places + lane_id() * blocks + block, best_here, round.number);
    const Offer best = await_offers(places + block % kCopies * blocks, blocks, round.number);
    if (lane_id() == 0) shared.offers[kGreedyWarps] = best;
  }
  __syncthreads();
  return shared.offers[kGreedyWarps];
}

// The sums over the warp of up to eight values per lane, value j to the lanes j, j + 8, j + 16, j + 24. Lanes that differ
// in a bit of j halve what they have to add: seven exchanges do three of the five steps for all values.
template <int kValues>
__device__ __forceinline__ float sums_by_lane(const float (&values)[kValues]) {
  static_assert(kValues <= 8, "a value per lane of a group of eight");
  const int lane = lane_id();
  float left[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) left[j] = j < kValues ? values[j < kValues ? j : 0] : 0.0f;
#pragma unroll
  for (int bit = 4; bit > 0; bit /= 2) {
    const bool upper = (lane & bit) != 0;
#pragma unroll
    for (int j = 0; j < bit; ++j) {
      if (j >= kValues) continue;  // zeros on both sides
      const float kept = upper ? left[j + bit] : left[j];
      left[j] = kept + __shfl_xor_sync(kFullWarp, upper ? left[j] : left[j + bit], bit);
    }
  }
  left[0] += __shfl_xor_sync(kFullWarp, left[0], 8);
  return left[0] + __shfl_xor_sync(kFullWarp, left[0], 16);
}

// float32 squared distances to the centre of the rows in the slots first, first + kGreedyWarps, ..., of the j-th in the
// lanes j, j + 8, j + 16, j + 24.
template <int kRows>
__device__ __forceinline__ float screen_rows(const GreedyShared& shared, int first, int padded) {
  const float* values = shared.values + static_cast<std::size_t>(first) * padded;
  float sums[kRows];
#pragma unroll
  for (int j = 0; j < kRows; ++j) sums[j] = 0.0f;
#pragma unroll 2
  for (int i = lane_id() * 4; i < padded; i += kWarp * 4) {
    const float4 c = *reinterpret_cast<const float4*>(shared.center + i);
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
      const float4 x = *reinterpret_cast<const float4*>(values + j * kGreedyWarps * padded + i);
      const float d0 = x.x - c.x, d1 = x.y - c.y, d2 = x.z - c.z, d3 = x.w - c.w;
      sums[j] = multiply_add(d0, d0, sums[j]);
      sums[j] = multiply_add(d1, d1, sums[j]);
      sums[j] = multiply_add(d2, d2, sums[j]);
      sums[j] = multiply_add(d3, d3, sums[j]);
    }
  }
  return sums_by_lane(sums);
}

__device__ __forceinline__ float screen_group(const GreedyShared& shared, const GreedyRound& round, int first,
                                              int rows) {
  static_assert(kGreedyGroup == 5, "a case per number of rows");
  switch (rows) {
    case 1: return screen_rows<1>(shared, first, round.padded);
    case 2: return screen_rows<2>(shared, first, round.padded);
    case 3: return screen_rows<3>(shared, first, round.padded);
    case 4: return screen_rows<4>(shared, first, round.padded);
    default: return screen_rows<5>(shared, first, round.padded);
  }
}

// A float32 that is not below the float64 distance that was screened: the counterpart of may_be_within.
__device__ __forceinline__ float bound_above(float screened, float relative_error) {
  if (!(screened < 1e38f)) return kInfinity32;
  return float_up((static_cast<double>(screened) + 1e-30) * (1.0 + 2.0 * static_cast<double>(relative_error)));
}

// The rows of a warp (slots warp, warp + kGreedyWarps, ...) see the last pick; the warp's best offer among those that
// the pick has not come near. For the others the distance is put off until the messenger is on its way. Four lanes look
// after a row: they compute the same, and the first of them writes.
__device__ Offer lower_rows(const GreedyShared& shared, const GreedyRound& round, int picked_row) {
  const float error = difference_error(round.dim);
  const int member = lane_id() % 8;
  Offer best = no_offer();
  for (int first = warp_id(); first < round.owned; first += kGreedyWarps * kGreedyGroup) {
    const int left = (round.owned - first + kGreedyWarps - 1) / kGreedyWarps;
    const int rows = left < kGreedyGroup ? left : kGreedyGroup;
    const float screened = screen_group(shared, round, first, rows);
    const int slot = first + member * kGreedyWarps;
    Offer offer = no_offer();
    if (member < rows) {
      offer = {shared.m[slot], shared.row[slot]};
      if (shared.above[slot] >= 0.0f && shared.distances[slot] < offer.m) offer.m = shared.distances[slot];
      if (offer.row == picked_row) offer.m = -1.0;
    }
    const bool near = offer.m >= 0.0 && may_be_within(screened, error, offer.m);
    if (!near && offer.m >= 0.0 && offer.beats(best)) best = offer;
    __syncwarp();  // the four lanes of a row have read what the first of them writes
    if (lane_id() < rows) {
      shared.m[slot] = offer.m;
      shared.above[slot] = near ? bound_above(screened, error) : -1.0f;
    }
  }
  return warp_best(best);
}

// What the block leaves behind: the pool's m, and its picked rows marked.
__device__ void store_rows(const GreedyTask& task, const GreedyShared& shared, int owned) {
  for (int slot = static_cast<int>(threadIdx.x); slot < owned; slot += kGreedyThreads) {
    const int row = shared.row[slot];
    double m = shared.m[slot];
    if (shared.above[slot] >= 0.0f && shared.distances[slot] < m) m = shared.distances[slot];
    task.rows.exact[row] = m;
    if (m < 0.0) {
      task.rows.state.upper[row] = -kInfinity32;
    } else {
      set_upper(task.rows, row, m);
    }
  }
}

// Brings a warp's rows to shared memory; the warp's best offer.
__device__ Offer load_rows(const GreedyTask& task, const GreedyShared& shared, const GreedyRound& round, int first) {
  Offer best = no_offer();
  for (int slot = warp_id(); slot < round.owned; slot += kGreedyWarps) {
    const int row = task.pool_rows[first + slot];
    copy_row(shared.values + static_cast<std::size_t>(slot) * round.padded,
             task.rows.values + static_cast<std::int64_t>(row) * round.dim, round.dim);
    const Offer offer{task.rows.exact[row], row};
    if (lane_id() == 0) {
      shared.m[slot] = offer.m;
      shared.row[slot] = row;
      shared.above[slot] = -1.0f;
    }
    if (offer.beats(best)) best = offer;
  }
  return best;
}

__global__ void __launch_bounds__(kGreedyThreads, 1) greedy_kernel(GreedyTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  GreedyRound round;
  round.number = task.first_round;
  round.dim = task.rows.operand.dim;
  round.padded = padded_dim(round.dim);
  GreedyShared shared;
  shared.carve(memory, task.rows_a_block, round.padded);
  const int first = static_cast<int>(blockIdx.x) * task.rows_a_block;
  const int left = task.pool_size - first;
  round.owned = left < 0 ? 0 : left > task.rows_a_block ? task.rows_a_block : left;
  const bool has_rows = warp_id() != kMessenger;
  Offer mine = has_rows ? load_rows(task, shared, round, first) : no_offer();
  const SelectEntry outside = task.pool->outside;
  const bool alone = outside.key == 0;  // nothing outside
  const Offer tau{alone ? -1.0 : value_of(outside.key), alone ? 0x7FFFFFFF : static_cast<int>(~outside.inverted)};
  std::int64_t picked = task.picked;
  for (;;) {
    if (has_rows && lane_id() == 0) shared.offers[warp_id()] = mine;
    const Offer next = exchange_offers(task, shared, round);
    const bool certain = next.m >= 0.0 && next.beats(tau);
    const bool covered = certain && task.radius >= 0.0 && sqrt(next.m) <= task.radius;
    if (!certain || covered || picked == task.count) {
      if (blockIdx.x == 0 && threadIdx.x == 0) {
        *task.progress = {picked, !certain ? kUncertain : covered ? kCovered : kFull, next.m};
      }
      break;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      task.picks[picked] = next.row;
      task.radii[picked] = next.m;  // the other blocks wait for this one: the square root comes later
    }
    ++picked;
    ++round.number;
    copy_pick(shared, task.rows.values + static_cast<std::int64_t>(next.row) * round.dim, round);
    __syncthreads();
    if (has_rows) mine = lower_rows(shared, round, next.row);
  }
  __syncthreads();
  store_rows(task, shared, round.owned);
  if (blockIdx.x != 0) return;
  for (std::int64_t pick = task.picked + threadIdx.x; pick < picked; pick += kGreedyThreads) {
    task.radii[pick] = sqrt(task.radii[pick]);
  }
}

__global__ void __launch_bounds__(kWarp)
    first_pick_kernel(Rows rows, std::int64_t start, std::int64_t* picks, double* radii) {
  if (threadIdx.x != 0) return;
  picks[0] = start;
  radii[0] = kInfinity64;
  rows.exact[start] = -1.0;
  rows.state.upper[start] = -kInfinity32;
}

// Copies the prepared rows of new picks behind the centres; one warp per row.
__global__ void __launch_bounds__(kRowWarps* kWarp)
    append_kernel(Operand rows, Centers centers, std::int64_t first, std::int64_t last) {
  const std::int64_t pick = first + static_cast<std::int64_t>(blockIdx.x) * kRowWarps + warp_id();
  if (pick >= last) return;
  const std::int64_t from = centers.picks[pick];
  const std::int64_t to = centers.earlier_count + pick;
  const int depth_blocks = rows.depth_blocks;
  const unsigned char* source = tile_values(rows, from / kTileRows);
  unsigned char* target = tile_values(centers.operand, to / kTileRows);
  const int from_row = static_cast<int>(from % kTileRows);
  const int to_row = static_cast<int>(to % kTileRows);
  for (int i = lane_id(); i < depth_blocks * 8; i += kWarp) {
    const std::size_t block = static_cast<std::size_t>(i / 8) * kBlockBytes;
    *reinterpret_cast<uint4*>(target + block + swizzled_chunk(to_row, i % 8)) =
        *reinterpret_cast<const uint4*>(source + block + swizzled_chunk(from_row, i % 8));
  }
  if (lane_id() != 0) return;
  const float norm = rows.norm[from];
  const float residual = rows.residual[from];
  centers.operand.squared[to] = rows.squared[from];
  centers.operand.norm[to] = norm;
  centers.operand.residual[to] = residual;
  atomicMax(reinterpret_cast<unsigned*>(centers.operand.tile_norm + to / kTileRows), bit_cast<unsigned>(norm));
  atomicMax(reinterpret_cast<unsigned*>(centers.operand.tile_residual + to / kTileRows), bit_cast<unsigned>(residual));
  atomicMax(reinterpret_cast<unsigned*>(centers.operand.largest_norm), bit_cast<unsigned>(norm));
}

// ---- the host's part -----------------------------------------------------------------------------------------------

struct Parts {
  SelectionRows all;
  PoolState* pool = nullptr;
  std::int32_t* pool_rows = nullptr;
  SelectEntry* partial = nullptr;
  SharedPair* exchange = nullptr;
  Progress* progress = nullptr;
};

int rows_a_block(const KCenterProblem& problem, const DeviceLimits& limits) {
  const int padded = padded_dim(problem.operand.dim);
  int rows = problem.pool == 0 ? kRowsABlock
                               : static_cast<int>((problem.pool + limits.multiprocessors - 1) / limits.multiprocessors);
  while (rows > 1 && GreedyShared::bytes(rows, padded) > limits.shared_per_block) --rows;
  return rows;
}

int outside_blocks(const DeviceLimits& limits) { return 4 * limits.multiprocessors; }

std::size_t lay_out(void* buffer, const KCenterProblem& problem, const DeviceLimits& limits, Parts& parts) {
  Workspace workspace(buffer);
  parts.all.lay_out(workspace, problem.operand, problem.rows, problem.earlier_count + problem.count, limits);
  parts.all.centers.earlier = problem.earlier;
  parts.all.centers.earlier_count = problem.earlier_count;
  parts.pool = workspace.take<PoolState>(1);
  const int multiprocessors = limits.multiprocessors;
  parts.pool_rows =
      workspace.take<std::int32_t>(static_cast<std::size_t>(multiprocessors) * rows_a_block(problem, limits));
  parts.partial = workspace.take<SelectEntry>(static_cast<std::size_t>(outside_blocks(limits)));
  parts.exchange = workspace.take<SharedPair>(static_cast<std::size_t>(multiprocessors) * 2 * kCopies);
  parts.progress = workspace.take<Progress>(1);
  return workspace.used();
}

class Selection {
 public:
  Selection(const KCenterProblem& problem, const DeviceLimits& limits, void* workspace, std::int64_t* picks,
            double* radii, Stream stream)
      : problem_(problem), limits_(limits), picks_(picks), radii_(radii), stream_(stream) {
    lay_out(workspace, problem, limits, parts_);
    parts_.all.centers.picks = picks;
  }

  KCenterOutcome run(const std::function<void(std::int64_t)>& progress) {
    begin();
    KCenterOutcome outcome;
    while (picked_ < problem_.operand.rows) {
      const Progress block = pick_block();
      const std::int64_t before = picked_;
      picked_ = block.picks;
      if (progress && picked_ > before) progress(picked_);
      if (block.reason != kUncertain) {
        outcome.covering_radius = std::sqrt(block.largest);
        break;
      }
      if (picked_ > before) add_centers(before, picked_);
    }
    outcome.count = picked_;
    return outcome;
  }

 private:
  std::int64_t rows() const { return problem_.operand.rows; }

  void begin() {
    parts_.all.begin(limits_, stream_);
    const std::size_t pairs = static_cast<std::size_t>(limits_.multiprocessors) * 2 * kCopies;
    check(cudaMemsetAsync(parts_.exchange, 0, pairs * sizeof(SharedPair), stream_), "k-center begin");
    if (problem_.earlier_count > 0) {
      prepare_rows(problem_.earlier, problem_.earlier_count, problem_.operand.dim, problem_.center,
                   parts_.all.centers.operand, 0, stream_);
      parts_.all.meet(0, problem_.earlier_count);
    } else {
      launch("k-center first pick", first_pick_kernel, dim3(1), kWarp, 0, stream_, Launch::kPlain, parts_.all.rows,
             problem_.start, picks_, radii_);
      picked_ = 1;
      add_centers(0, 1);
    }
  }

  // Steps 1 to 3.
  Progress pick_block() {
    const int blocks = limits_.multiprocessors;
    const std::int64_t largest_pool = static_cast<std::int64_t>(blocks) * rows_a_block(problem_, limits_);
    const int pool_size = static_cast<int>(std::min(largest_pool, rows() - picked_));
    const std::int64_t center_count = problem_.earlier_count + picked_;
    check(cudaMemsetAsync(parts_.pool, 0, sizeof(PoolState), stream_), "k-center block");
    parts_.all.set_keys();
    run_select(parts_.all.rows.keys, rows(), pool_size, &parts_.pool->select, 2 * blocks, stream_);
    launch("k-center pool", pool_kernel, dim3(blocks_for(rows(), kSelectThreads)), kSelectThreads, 0, stream_,
           Launch::kPlain, parts_.all.rows, parts_.pool, parts_.pool_rows);
    launch("k-center decide", decide_pool_kernel, dim3(blocks_for(pool_size, kRowWarps)), kRowWarps * kWarp, 0, stream_,
           Launch::kPlain, parts_.all.rows, parts_.all.centers, center_count, parts_.pool, parts_.pool_rows, pool_size);
    launch("k-center outside", outside_kernel, dim3(static_cast<unsigned>(outside_blocks(limits_))), kRowWarps * kWarp,
           kRowWarps * sizeof(SelectEntry) + sizeof(int), stream_, Launch::kPlain, parts_.all.rows, parts_.all.centers,
           center_count, parts_.pool, parts_.partial);

    GreedyTask task;
    task.rows = parts_.all.rows;
    task.pool = parts_.pool;
    task.pool_rows = parts_.pool_rows;
    task.pool_size = pool_size;
    task.rows_a_block = (pool_size + blocks - 1) / blocks;
    task.picked = picked_;
    task.count = problem_.count;
    task.radius = problem_.radius;
    task.picks = picks_;
    task.radii = radii_;
    task.exchange = parts_.exchange;
    task.first_round = next_round_;
    task.progress = parts_.progress;
    launch("k-center picks", greedy_kernel, dim3(static_cast<unsigned>(blocks)), kGreedyThreads,
           GreedyShared::bytes(task.rows_a_block, padded_dim(problem_.operand.dim)), stream_, Launch::kCooperative,
           task);
    Progress progress;
    check(cudaMemcpyAsync(&progress, parts_.progress, sizeof(progress), cudaMemcpyDefault, stream_),
          "k-center progress");
    check(cudaStreamSynchronize(stream_), "k-center progress");
    next_round_ += static_cast<std::uint32_t>(progress.picks - picked_) + 1;
    return progress;
  }

  // Step 4.
  void add_centers(std::int64_t first, std::int64_t last) {
    launch("k-center append", append_kernel, dim3(blocks_for(last - first, kRowWarps)), kRowWarps * kWarp, 0, stream_,
           Launch::kPlain, problem_.operand, parts_.all.centers, first, last);
    parts_.all.meet(problem_.earlier_count + first, problem_.earlier_count + last);
  }

  const KCenterProblem& problem_;
  const DeviceLimits& limits_;
  std::int64_t* picks_;
  double* radii_;
  Stream stream_;
  Parts parts_;
  std::int64_t picked_ = 0;
  std::uint32_t next_round_ = 1;  // of exchanges; the exchange starts as if all had been made in round 0
};

}  // namespace

std::size_t k_center_workspace_bytes(const KCenterProblem& problem, const DeviceLimits& limits) {
  Parts parts;
  return lay_out(nullptr, problem, limits, parts);
}

KCenterOutcome k_center_greedy(const KCenterProblem& problem, const DeviceLimits& limits, void* workspace,
                               std::int64_t* picks, double* radii, const std::function<void(std::int64_t)>& progress,
                               Stream stream) {
  return Selection(problem, limits, workspace, picks, radii, stream).run(progress);
}

}  // namespace mmad::cuda
