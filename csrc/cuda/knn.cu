// Exact k-NN: product.cu screens; here the candidates of all splits are gathered and decided in float64, and the queries
// whose candidates did not fit are searched row by row.
#include <algorithm>

#include "cuda/product.cuh"
#include "cuda/warp.cuh"
#include "cuda/workspace.hpp"
#include "mmad/cuda_knn.hpp"

namespace mmad::cuda {

namespace {

constexpr int kMergeWarps = 4;
// Candidates of one query, all splits together, and of one split beyond 4 k: where a bank holds hundreds of near copies of
// a vector, deciding them one by one costs far less than a search row by row.
constexpr int kMergeCapacity = 1024;
constexpr int kSplitCapacity = 128;
constexpr std::uint32_t kTaken = 0xFFFFFFFFu;

// Queries that go through all rows in float64, and their results while several blocks work on one.
struct Fallback {
  std::int32_t* last = nullptr;  // their number less one, so that one value begins this and the shared bounds
  std::int32_t* queries = nullptr;
  double* distances = nullptr;  // k a flagged query, sorted
  std::int32_t* rows = nullptr;
  std::int32_t* locks = nullptr;
  std::int32_t* finished = nullptr;  // chunks of the bank that are done
};

struct KnnTask {
  const float* queries;
  std::int64_t query_count;
  const float* bank;
  std::int64_t bank_rows;
  int dim;
  const float* query_squared;
  SearchState state;
  Fallback fallback;
  FoundRows found;
  float* distances;  // of the query's first neighbour in this pass; the next query's are `stride` further on
  std::int64_t* indices;
  std::int64_t stride;
};

__device__ __forceinline__ void write_result(const KnnTask& task, std::int64_t query, double distance, int row) {
  const int lane = lane_id();
  if (lane >= task.state.k) return;
  const bool known = row < task.bank_rows;  // not so where distances are NaN
  task.distances[query * task.stride + lane] = known ? static_cast<float>(sqrt(distance)) : kNaN32;
  task.indices[query * task.stride + lane] = known ? row : 0;
}

__device__ void flag_for_fallback(const KnnTask& task, std::int64_t query) {
  const int lane = lane_id();
  int slot = 0;
  if (lane == 0) {
    slot = atomicAdd(task.fallback.last, 1) + 1;
    task.fallback.queries[slot] = static_cast<std::int32_t>(query);
    task.fallback.locks[slot] = 0;
    task.fallback.finished[slot] = 0;
  }
  slot = __shfl_sync(kFullWarp, slot, 0);
  if (lane < task.state.k) {
    task.fallback.distances[static_cast<std::int64_t>(slot) * task.state.k + lane] = kInfinity64;
    task.fallback.rows[static_cast<std::int64_t>(slot) * task.state.k + lane] = 0x7FFFFFFF;
  }
}

// The k-th smallest of the upper bounds of all splits, as ordered bits, by bisection on the 32 bits.
__device__ std::uint32_t kth_upper_bound(const SearchState& state, std::int64_t query) {
  const int count = state.splits_of(query) * state.k;
  const float* upper = state.upper + query * state.splits * state.k;
  const int lane = lane_id();
  if (state.k == 1) {
    std::uint32_t least = kTaken;
    for (int i = lane; i < count; i += kWarp) least = min(least, ordered_bits(upper[i]));
    return __reduce_min_sync(kFullWarp, least);
  }
  std::uint32_t result = 0;
  for (std::uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const std::uint32_t below = result | bit;  // are there k values smaller than this?
    int smaller = 0;
    for (int start = 0; start < count; start += kWarp) {
      const bool hit = start + lane < count && ordered_bits(upper[start + lane]) < below;
      smaller += __popc(__ballot_sync(kFullWarp, hit));
    }
    if (smaller < state.k) result = below;
  }
  return result;
}

// Copies the candidates that are not ruled out by `limit` to shared memory; the number, or -1 if they do not fit.
__device__ int gather_candidates(const SearchState& state, std::int64_t query, std::uint32_t limit, uint2* list) {
  constexpr int kTogether = 4;  // loads of a lane that are on their way together
  const int lane = lane_id();
  int kept = 0;
  const int splits = state.splits_of(query);
  for (int start = 0; start < splits; start += kWarp) {  // a lane a split
    const std::int64_t entry = query * state.splits + start + lane;
    const int count = start + lane < splits ? state.counts[entry] : 0;
    const int longest = static_cast<int>(__reduce_max_sync(kFullWarp, static_cast<unsigned>(count)));
    if (longest > state.capacity) return -1;
    for (int i = 0; i < longest; i += kTogether) {
      Candidate candidates[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        candidates[j] = i + j < count ? state.candidates[entry * state.capacity + i + j] : Candidate{kInfinity32, 0};
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const uint2 item{ordered_bits(candidates[j].lower), static_cast<unsigned>(candidates[j].row)};
        const bool keep = i + j < count && item.x <= limit;
        const unsigned keepers = __ballot_sync(kFullWarp, keep);
        const int place = kept + __popc(keepers & ((1u << lane) - 1u));
        kept += __popc(keepers);
        if (kept > kMergeCapacity) return -1;
        if (keep) list[place] = item;
      }
    }
  }
  __syncwarp();
  return kept;
}

// Takes the candidate with the least lower bound out of the list.
__device__ uint2 take_least(uint2* list, int count) {
  const int lane = lane_id();
  std::uint32_t least = kTaken;
  int place = 0;
  for (int i = lane; i < count; i += kWarp) {
    if (list[i].x < least) {
      least = list[i].x;
      place = i;
    }
  }
  const std::uint32_t winner = __reduce_min_sync(kFullWarp, least);
  const int source = __ffs(static_cast<int>(__ballot_sync(kFullWarp, least == winner))) - 1;
  place = __shfl_sync(kFullWarp, place, source);
  const uint2 item{winner, list[place].y};
  __syncwarp();
  if (lane == 0) list[place].x = kTaken;
  __syncwarp();
  return item;
}

// Decides candidates in the order of their lower bounds, until these exceed the k-th exact value; several at a time, as
// most of the time goes into waiting for their rows.
__device__ __forceinline__ LaneList decide(const KnnTask& task, std::int64_t query, uint2* list, int count) {
  constexpr int kTogether = 4;
  const int k = task.state.k;
  const double squared = task.query_squared[query];
  const float* query_row = task.queries + query * task.dim;
  LaneList best;
  best.clear();
  for (int done = 0; done < count;) {
    // T of the k-th neighbour, rounded up generously: |q|^2 is a float32, the distance a float64 sum.
    const double decided = best.kth_distance(k) * (1.0 + 1e-9) - squared * (1.0 - 3e-7);
    const int wanted = min(done < k ? k - done : kTogether, min(kTogether, count - done));
    const float* rows[kTogether];
    int numbers[kTogether];
    int taken = 0;
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      numbers[j] = j == 0 ? 0 : numbers[0];  // what is not wanted is read with the first
      if (j < wanted && taken == j) {
        const uint2 item = take_least(list, count);
        if (done < k || static_cast<double>(from_ordered_bits(item.x)) <= decided) {
          numbers[j] = static_cast<int>(item.y);
          ++taken;
        }
      }
      rows[j] = task.bank + static_cast<std::int64_t>(numbers[j]) * task.dim;
    }
    if (taken == 0) break;
    double distances[kTogether];
    if (taken == 1) {
      distances[0] = exact_squared_distance(query_row, rows[0], task.dim);
    } else {
      exact_squared_distances(query_row, rows, task.dim, distances);
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      if (j < taken) best.insert(distances[j], numbers[j]);
    }
    done += taken;
    if (taken < wanted) break;
  }
  return best;
}

// One warp per query.
__global__ void __launch_bounds__(kMergeWarps* kWarp) decide_kernel(const KnnTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  const std::int64_t query = static_cast<std::int64_t>(blockIdx.x) * kMergeWarps + warp_id();
  let_next_begin();
  wait_for_previous();
  if (query >= task.query_count) return;
  uint2* list = reinterpret_cast<uint2*>(memory) + warp_id() * kMergeCapacity;
  const std::uint32_t limit = kth_upper_bound(task.state, query);
  const int count = gather_candidates(task.state, query, limit, list);
  if (count < 0) {
    flag_for_fallback(task, query);
    return;
  }
  const LaneList best = decide(task, query, list, count);
  write_result(task, query, best.distance, best.row);
}

constexpr int kFallbackWarps = 8;
constexpr int kFallbackQueries = 4;  // that share one reading of the bank
constexpr int kFallbackRows = 512;   // rows of the bank per turn

// Merges a warp's list into the one in device memory, under its lock.
__device__ void merge_into(const Fallback& fallback, int slot, int k, const LaneList& mine) {
  const int lane = lane_id();
  volatile double* distances = fallback.distances + static_cast<std::int64_t>(slot) * k;
  volatile std::int32_t* rows = fallback.rows + static_cast<std::int64_t>(slot) * k;
  const double best_of_mine = __shfl_sync(kFullWarp, mine.distance, 0);
  if (__shfl_sync(kFullWarp, static_cast<double>(distances[k - 1]), 0) < best_of_mine) return;  // it only ever falls
  if (lane == 0) {
    while (atomicCAS(&fallback.locks[slot], 0, 1) != 0) wait_a_moment();
  }
  __syncwarp();
  __threadfence();
  LaneList merged;
  merged.clear();
  if (lane < k) {
    merged.distance = distances[lane];
    merged.row = rows[lane];
  }
  for (int j = 0; j < k; ++j) {
    const double distance = __shfl_sync(kFullWarp, mine.distance, j);
    const int row = __shfl_sync(kFullWarp, mine.row, j);
    merged.insert(distance, row);
  }
  if (lane < k) {
    distances[lane] = merged.distance;
    rows[lane] = merged.row;
  }
  __threadfence();
  __syncwarp();
  if (lane == 0) atomicExch(&fallback.locks[slot], 0);
}

// float32 screens, float64 decides: this warp's rows of [begin, end) against a group of flagged queries.
__device__ void scan_rows(const KnnTask& task, const std::int64_t (&queries)[kFallbackQueries], std::int64_t begin,
                          std::int64_t end, LaneList (&best)[kFallbackQueries]) {
  const float error = difference_error(task.dim);
  for (std::int64_t row = begin + warp_id(); row < end; row += kFallbackWarps) {
    const float* bank_row = task.bank + row * task.dim;
    float screened[kFallbackQueries] = {};
    for (int i = lane_id(); i < task.dim; i += kWarp) {
      const float value = bank_row[i];
#pragma unroll
      for (int j = 0; j < kFallbackQueries; ++j) {
        const float difference = task.queries[queries[j] * task.dim + i] - value;
        screened[j] = multiply_add(difference, difference, screened[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kFallbackQueries; ++j) {
      if (!may_be_within(warp_sum(screened[j]), error, best[j].kth_distance(task.state.k))) continue;
      if (task.found.holds(queries[j], row)) continue;
      const double distance = exact_squared_distance(task.queries + queries[j] * task.dim, bank_row, task.dim);
      best[j].insert(distance, static_cast<int>(row));
    }
  }
}

__global__ void __launch_bounds__(kFallbackWarps* kWarp) fallback_kernel(const KnnTask task) {
  wait_for_previous();
  const int flagged = *task.fallback.last + 1;
  const int chunks = static_cast<int>((task.bank_rows + kFallbackRows - 1) / kFallbackRows);
  const std::int64_t items = static_cast<std::int64_t>((flagged + kFallbackQueries - 1) / kFallbackQueries) * chunks;
  for (std::int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int first = static_cast<int>(item / chunks) * kFallbackQueries;
    const std::int64_t begin = item % chunks * kFallbackRows;
    const std::int64_t end = begin + kFallbackRows < task.bank_rows ? begin + kFallbackRows : task.bank_rows;
    std::int64_t queries[kFallbackQueries];
    LaneList best[kFallbackQueries];
#pragma unroll
    for (int j = 0; j < kFallbackQueries; ++j) {  // the last group may repeat its last query
      queries[j] = task.fallback.queries[first + j < flagged ? first + j : flagged - 1];
      best[j].clear();
    }
    scan_rows(task, queries, begin, end, best);
#pragma unroll
    for (int j = 0; j < kFallbackQueries; ++j) {
      if (first + j < flagged) merge_into(task.fallback, first + j, task.state.k, best[j]);
    }
    __syncthreads();
    if (warp_id() >= kFallbackQueries || first + warp_id() >= flagged) continue;
    const int slot = first + warp_id();  // one warp per query: the block that finishes last writes the result
    int before = 0;
    if (lane_id() == 0) {
      __threadfence();
      before = atomicAdd(&task.fallback.finished[slot], 1);
      __threadfence();
    }
    if (__shfl_sync(kFullWarp, before, 0) != chunks - 1) continue;
    const int lane = lane_id();
    const int k = task.state.k;
    volatile double* distances = task.fallback.distances + static_cast<std::int64_t>(slot) * k;
    volatile std::int32_t* rows = task.fallback.rows + static_cast<std::int64_t>(slot) * k;
    write_result(task, task.fallback.queries[slot], lane < k ? distances[lane] : 0.0, lane < k ? rows[lane] : 0);
  }
}

struct Parts {
  Operand queries;
  SearchState state;
  Fallback fallback;
};

std::size_t lay_out(void* buffer, std::int64_t count, int dim, int k, const KnnPlan& plan, Parts& parts) {
  Workspace workspace(buffer);
  const std::size_t q = static_cast<std::size_t>(count);
  const std::size_t entries = q * static_cast<std::size_t>(plan.splits);
  parts.queries = operand_view(workspace.take<char>(operand_bytes(count, dim, false)), count, dim, false);
  parts.state.upper = workspace.take<float>(entries * k);
  parts.state.candidates = workspace.take<Candidate>(entries * plan.capacity);
  parts.state.counts = workspace.take<std::int32_t>(entries);
  parts.state.shared = workspace.take<std::uint32_t>(q + 1);
  parts.state.k = k;
  parts.state.splits = plan.splits;
  parts.state.last_splits = plan.last_splits;
  parts.state.last_query = static_cast<std::int64_t>(tiles_of(count) - 1) * kTileRows;
  parts.state.capacity = plan.capacity;
  parts.fallback.last = reinterpret_cast<std::int32_t*>(parts.state.shared + q);
  parts.fallback.queries = workspace.take<std::int32_t>(q);
  parts.fallback.distances = workspace.take<double>(q * k);
  parts.fallback.rows = workspace.take<std::int32_t>(q * k);
  parts.fallback.locks = workspace.take<std::int32_t>(q);
  parts.fallback.finished = workspace.take<std::int32_t>(q);
  return workspace.used();
}

}  // namespace

KnnPlan plan_knn(std::int64_t queries, const Operand& bank, int k, const DeviceLimits& limits) {
  KnnPlan plan;
  const int a_pass = std::min(k, kLargestK);
  const Splits splits = choose_splits(queries, bank, limits);
  plan.splits = splits.all;
  plan.last_splits = splits.last;
  plan.capacity = kSplitCapacity + 4 * a_pass;
  Parts parts;
  plan.workspace_bytes = lay_out(nullptr, queries, bank.dim, a_pass, plan, parts);
  return plan;
}

namespace {

// The neighbours after the first `done`, as many as the state's k.
void search_pass(const float* queries, std::int64_t count, const KnnBank& bank, int k, int done, const KnnPlan& plan,
                 const DeviceLimits& limits, const Parts& parts, float* distances, std::int64_t* indices,
                 Stream stream) {
  const std::size_t words = static_cast<std::size_t>(count) + 1;  // no bound is known, no query flagged
  check(cudaMemsetAsync(parts.state.shared, 0xFF, words * sizeof(std::uint32_t), stream), "knn");
  ProductTask product;
  product.queries = parts.queries;
  product.bank = bank.operand;
  product.state = parts.state;
  product.found = {indices, k, done};
  if (plan.splits == 1) product.state.shared = nullptr;
  product.last_tile = bank.operand.tiles;
  run_product(product, limits, stream);

  const KnnTask task{
      queries,     count,          bank.rows,     bank.operand.rows, bank.operand.dim, parts.queries.squared,
      parts.state, parts.fallback, product.found, distances + done,  indices + done,   k};
  const Launch how = chained_launch(limits);
  launch("knn decide", decide_kernel, dim3(blocks_for(count, kMergeWarps)), kMergeWarps * kWarp,
         kMergeWarps * kMergeCapacity * sizeof(uint2), stream, how, task);
  launch("knn fallback", fallback_kernel, dim3(static_cast<unsigned>(2 * limits.multiprocessors)),
         kFallbackWarps * kWarp, 0, stream, how, task);
}

}  // namespace

void knn(const float* queries, std::int64_t count, const KnnBank& bank, int k, const KnnPlan& plan,
         const DeviceLimits& limits, void* workspace, float* distances, std::int64_t* indices, Stream stream) {
  Parts parts;
  lay_out(workspace, count, bank.operand.dim, std::min(k, kLargestK), plan, parts);
  parts.queries = queries_only(parts.queries);
  prepare_rows(queries, count, bank.operand.dim, bank.center, parts.queries, 0, stream);
  for (int done = 0; done < k; done += kLargestK) {
    parts.state.k = std::min(k - done, kLargestK);
    search_pass(queries, count, bank, k, done, plan, limits, parts, distances, indices, stream);
  }
}

}  // namespace mmad::cuda
