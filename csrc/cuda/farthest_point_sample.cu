// Farthest point sampling. Where the device has thread blocks to spare, several share a cloud: few points per thread,
// whose m, the squared distance to the nearest pick, is kept in float64 in registers, and an exchange of the blocks' best
// per pick. Otherwise there is one thread block per cloud. The squared distance m of every point to the nearest pick is
// kept as a float32 rounded upwards, in registers with the x coordinate; y and z lie in shared memory. A pick's
// distance is taken in float64 only for points whose float32 lower bound does not exceed their m, which are few after
// some picks, and float64 values, kept in device memory, decide where the largest float32 is not held by one point
// alone. Points that are not finite are left out, as those below the floor are; a cloud with too few others repeats its
// last pick. So rows stay inside their cloud whatever the device holds.
#include <algorithm>

#include "cuda/exchange.cuh"
#include "cuda/points.cuh"
#include "cuda/workspace.hpp"
#include "mmad/cuda_points.hpp"

namespace mmad::cuda {

namespace {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / kWarp;
constexpr int kSampleAlone = 8;  // points per thread up to which one block is faster: an exchange takes its time
constexpr int kLargestTogether = kWarp;  // blocks per cloud: a lane for each
constexpr int kLargestBlocks = 1024;     // in all, where clouds are shared

struct SampleTask {
  const float* points;
  const std::int64_t* first_rows;
  const std::int64_t* sizes;
  std::int64_t n_select;
  std::int64_t start;
  double floor;
  double* exact;   // m of every point in float64
  float* rounded;  // m rounded upwards; only for clouds that do not fit registers
  std::int64_t* picks;
  SharedPair* exchange;  // [cloud][2][blocks per cloud]; only where blocks share a cloud
  int cloud_blocks;
};

// A thread's, a warp's or the block's farthest point so far; m = -1 where there is none.
struct Farthest {
  float m = -1.0f;
  int row = 0x7FFFFFFF;
  float x = 0.0f;

  __device__ __forceinline__ void see(float other, int other_row, float other_x) {
    if (other > m) {
      m = other;
      row = other_row;
      x = other_x;
    }
  }
};

struct SampleShared {
  Farthest* warps;  // [kSampleWarps]
  double* exact;    // [kSampleWarps], where float64 decides
  int* exact_rows;  // [kSampleWarps]
  float* y;
  float* z;

  static std::size_t bytes(std::int64_t coordinates) {
    return kSampleWarps * (sizeof(Farthest) + 8 + 4) + 2 * static_cast<std::size_t>(coordinates) * sizeof(float);
  }

  __device__ __forceinline__ void carve(unsigned char* memory, int coordinates) {
    exact = reinterpret_cast<double*>(memory);
    exact_rows = reinterpret_cast<int*>(exact + kSampleWarps);
    warps = reinterpret_cast<Farthest*>(exact_rows + kSampleWarps);
    y = reinterpret_cast<float*>(warps + kSampleWarps);
    z = y + coordinates;
  }
};

// Gives the farthest point of a warp to all its lanes: floats that are not negative order like their bits, -1 below
// them.
__device__ __forceinline__ Farthest warp_farthest(const Farthest& mine) {
  Farthest best;
  const int bits = __reduce_max_sync(kFullWarp, bit_cast<int>(mine.m));
  const bool holds = bit_cast<int>(mine.m) == bits;
  best.m = bit_cast<float>(bits);
  best.row = static_cast<int>(__reduce_min_sync(kFullWarp, holds ? static_cast<unsigned>(mine.row) : 0x7FFFFFFFu));
  const unsigned holder = __ballot_sync(kFullWarp, holds && mine.row == best.row);
  best.x = __shfl_sync(kFullWarp, mine.x, __ffs(static_cast<int>(holder)) - 1);
  return best;
}

__device__ Farthest block_farthest(const SampleShared& shared, const Farthest& mine) {
  const int lane = lane_id();
  const Farthest of_warp = warp_farthest(mine);
  if (lane == 0) shared.warps[warp_id()] = of_warp;
  __syncthreads();
  return warp_farthest(lane < kSampleWarps ? shared.warps[lane] : Farthest{});
}

// Where several points share the largest float32: the one with the largest float64, then the lowest row. A thread hands
// in its own; -1 for none.
__device__ int decide_exactly(const SampleShared& shared, double m, int row) {
  const int lane = lane_id();
#pragma unroll
  for (int round = 0; round < 2; ++round) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(kFullWarp, m, step);
      const int other_row = __shfl_xor_sync(kFullWarp, row, step);
      if (other > m || (other == m && other_row < row)) {
        m = other;
        row = other_row;
      }
    }
    if (round == 1) break;
    if (lane == 0) {
      shared.exact[warp_id()] = m;
      shared.exact_rows[warp_id()] = row;
    }
    __syncthreads();
    m = lane < kSampleWarps ? shared.exact[lane] : -1.0;
    row = lane < kSampleWarps ? shared.exact_rows[lane] : 0x7FFFFFFF;
  }
  __syncthreads();
  return row;
}

// Lowers a point's m to its exact distance from the pick; the new float32. The pick itself is out for good.
__device__ __forceinline__ float lower(double* exact, float rounded, int row, const Point& point, const Point& pick,
                                       int pick_row) {
  if (row == pick_row) return -1.0f;
  const double distance = exact_squared(point, pick);
  const float above = float_up(distance);
  if (above > rounded || (above == rounded && !(distance < exact[row]))) return rounded;
  exact[row] = distance;
  return above;
}

// Whether a point may be picked after the start, which is picked already. The squared norm is finite for all finite
// float32 coordinates.
__device__ __forceinline__ bool eligible(const SampleTask& task, const Point& point, int row) {
  const double squared = exact_squared(point, {0.0f, 0.0f, 0.0f});
  return row != task.start && squared > task.floor && squared < kInfinity64;
}

// Where no point is left that may be picked: the last pick again and again.
__device__ __forceinline__ void repeat_pick(const SampleTask& task, std::int64_t* picks, std::int64_t done, int row) {
  for (std::int64_t i = done + threadIdx.x; i < task.n_select; i += kSampleThreads) picks[i] = row;
}

// Points kSampleThreads apart belong to one thread.
template <int kPoints>
__global__ void __launch_bounds__(kSampleThreads, 1) sample_resident_kernel(SampleTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  const std::int64_t cloud = blockIdx.x;
  const int size = static_cast<int>(task.sizes[cloud]);
  const float* points = task.points + 3 * task.first_rows[cloud];
  double* exact = task.exact + task.first_rows[cloud];
  std::int64_t* picks = task.picks + cloud * task.n_select;
  const int thread = static_cast<int>(threadIdx.x);
  SampleShared shared;
  shared.carve(memory, kPoints * kSampleThreads);

  float x[kPoints];
  float m[kPoints];
#pragma unroll
  for (int p = 0; p < kPoints; ++p) {
    const int row = p * kSampleThreads + thread;
    x[p] = shared.y[row] = shared.z[row] = 0.0f;
    m[p] = -1.0f;
    if (row < size) {
      const Point point = load_point(points, row);
      x[p] = point.x;
      shared.y[row] = point.y;
      shared.z[row] = point.z;
      exact[row] = kInfinity64;
      m[p] = eligible(task, point, row) ? kInfinity32 : -1.0f;
    }
  }
  int pick_row = static_cast<int>(task.start);
  Point pick = load_point(points, pick_row);
  if (thread == 0) picks[0] = pick_row;
  for (std::int64_t done = 1; done < task.n_select; ++done) {
    Farthest mine;
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
      const int row = p * kSampleThreads + thread;
      const Point point{x[p], shared.y[row], shared.z[row]};
      if (lower_squared(point, pick) <= m[p]) m[p] = lower(exact, m[p], row, point, pick, pick_row);
      mine.see(m[p], row, x[p]);
    }
    const Farthest best = block_farthest(shared, mine);
    if (best.m < 0.0f) {  // the same for all threads
      repeat_pick(task, picks, done, pick_row);
      return;
    }
    int sharers = 0;
    if (mine.m == best.m) {
#pragma unroll
      for (int p = 0; p < kPoints; ++p) sharers += m[p] == best.m ? 1 : 0;
    }
    pick_row = best.row;
    pick = {best.x, shared.y[best.row], shared.z[best.row]};
    if (__syncthreads_or(sharers > 1 || (sharers == 1 && mine.row != best.row))) {
      double largest = -1.0;
      int largest_row = 0x7FFFFFFF;
      if (sharers > 0) {
#pragma unroll
        for (int p = 0; p < kPoints; ++p) {
          const int row = p * kSampleThreads + thread;
          if (m[p] == best.m && exact[row] > largest) {
            largest = exact[row];
            largest_row = row;
          }
        }
      }
      pick_row = decide_exactly(shared, largest, largest_row);
      pick = load_point(points, pick_row);
    }
    if (thread == 0) picks[done] = pick_row;
  }
}

// The same for clouds of any size, all in device memory.
__global__ void __launch_bounds__(kSampleThreads, 1) sample_kernel(SampleTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  const std::int64_t cloud = blockIdx.x;
  const int size = static_cast<int>(task.sizes[cloud]);
  const float* points = task.points + 3 * task.first_rows[cloud];
  double* exact = task.exact + task.first_rows[cloud];
  float* m = task.rounded + task.first_rows[cloud];
  std::int64_t* picks = task.picks + cloud * task.n_select;
  const int thread = static_cast<int>(threadIdx.x);
  SampleShared shared;
  shared.carve(memory, 0);

  for (int row = thread; row < size; row += kSampleThreads) {
    exact[row] = kInfinity64;
    m[row] = eligible(task, load_point(points, row), row) ? kInfinity32 : -1.0f;
  }
  int pick_row = static_cast<int>(task.start);
  if (thread == 0) picks[0] = pick_row;
  for (std::int64_t done = 1; done < task.n_select; ++done) {
    const Point pick = load_point(points, pick_row);
    Farthest mine;
    for (int row = thread; row < size; row += kSampleThreads) {
      float value = m[row];
      const Point point = load_point(points, row);
      if (lower_squared(point, pick) <= value) m[row] = value = lower(exact, value, row, point, pick, pick_row);
      mine.see(value, row, 0.0f);
    }
    const Farthest best = block_farthest(shared, mine);
    if (best.m < 0.0f) {
      repeat_pick(task, picks, done, pick_row);
      return;
    }
    double largest = -1.0;
    int largest_row = 0x7FFFFFFF;
    int sharers = 0;
    if (mine.m == best.m) {
      for (int row = thread; row < size; row += kSampleThreads) {
        if (m[row] != best.m) continue;
        ++sharers;
        if (exact[row] > largest) {
          largest = exact[row];
          largest_row = row;
        }
      }
    }
    pick_row = best.row;
    if (__syncthreads_or(sharers > 1 || (sharers == 1 && mine.row != best.row))) {
      pick_row = decide_exactly(shared, largest, largest_row);
    }
    if (thread == 0) picks[done] = pick_row;
  }
}

// Several blocks per cloud; points kSampleThreads * cloud_blocks apart belong to one thread.
template <int kPoints>
__global__ void __launch_bounds__(kSampleThreads, 1) sample_together_kernel(SampleTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  auto* offers = reinterpret_cast<Offer*>(memory);  // of the warps, then the best of all blocks
  auto* coordinates = reinterpret_cast<float*>(offers + kSampleWarps + 1);
  const int lane = lane_id();
  const int thread = static_cast<int>(threadIdx.x);
  const int cloud = static_cast<int>(blockIdx.x) / task.cloud_blocks;
  const int block = static_cast<int>(blockIdx.x) % task.cloud_blocks;
  const int size = static_cast<int>(task.sizes[cloud]);
  const float* points = task.points + 3 * task.first_rows[cloud];
  std::int64_t* picks = task.picks + cloud * task.n_select;
  SharedPair* exchange = task.exchange + static_cast<std::size_t>(cloud) * 2 * task.cloud_blocks;

  double x[kPoints], y[kPoints], z[kPoints], m[kPoints];
  const int step = task.cloud_blocks * kSampleThreads;
  const int first = block * kSampleThreads + thread;
#pragma unroll
  for (int p = 0; p < kPoints; ++p) {
    const int row = first + p * step;
    const Point point = row < size ? load_point(points, row) : Point{0.0f, 0.0f, 0.0f};
    x[p] = static_cast<double>(point.x);
    y[p] = static_cast<double>(point.y);
    z[p] = static_cast<double>(point.z);
    m[p] = row < size && eligible(task, point, row) ? kInfinity64 : -1.0;
  }
  int pick_row = static_cast<int>(task.start);
  Point pick = load_point(points, pick_row);
  const bool writes = block == 0 && thread == 0;
  if (writes) picks[0] = pick_row;
  for (std::int64_t done = 1; done < task.n_select; ++done) {
    const double pick_x = static_cast<double>(pick.x);
    const double pick_y = static_cast<double>(pick.y);
    const double pick_z = static_cast<double>(pick.z);
    Offer mine = no_offer();
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
      const int row = first + p * step;
      const double distance = sum_of_squares(x[p] - pick_x, y[p] - pick_y, z[p] - pick_z);
      if (distance < m[p]) m[p] = distance;
      if (row == pick_row) m[p] = -1.0;
      if (m[p] > mine.m) mine = {m[p], row};  // rows rise: the first of equals stays
    }
    mine = warp_best(mine);
    if (lane == 0) offers[warp_id()] = mine;
    __syncthreads();
    if (warp_id() == 0) {
      const auto round = static_cast<std::uint32_t>(done);
      SharedPair* places = exchange + static_cast<std::size_t>(round & 1u) * task.cloud_blocks;
      const Offer best_here = warp_best(lane < kSampleWarps ? offers[lane] : no_offer());
      if (lane == 0) publish(places + block, best_here, round);
      const Offer best = await_offers(places, task.cloud_blocks, round);
      if (lane == 0) offers[kSampleWarps] = best;
      if (lane < 3 && best.m >= 0.0) coordinates[lane] = points[3 * static_cast<std::int64_t>(best.row) + lane];
    }
    __syncthreads();
    const Offer best = offers[kSampleWarps];
    if (best.m < 0.0) {  // the same for all blocks of the cloud
      if (block == 0) repeat_pick(task, picks, done, pick_row);
      return;
    }
    pick_row = best.row;
    pick = load_point(coordinates, 0);
    if (writes) picks[done] = pick_row;
  }
}

template <int kPoints>
bool try_resident(const SampleTask& task, int clouds, std::int64_t largest, const DeviceLimits& limits, Stream stream) {
  constexpr int room = kPoints * kSampleThreads;
  const std::size_t shared = SampleShared::bytes(room);
  if (largest > room || shared > limits.shared_per_block) return false;
  launch("farthest_point_sample", sample_resident_kernel<kPoints>, dim3(static_cast<unsigned>(clouds)), kSampleThreads,
         shared, stream, Launch::kPlain, task);
  return true;
}

// Blocks per cloud so that all run at once, at least one point per thread.
int blocks_per_cloud(int clouds, std::int64_t largest, const DeviceLimits& limits) {
  if (largest <= static_cast<std::int64_t>(kSampleAlone) * kSampleThreads) return 1;
  const int spare = std::min(limits.multiprocessors, kLargestBlocks) / clouds;
  return static_cast<int>(std::min<std::int64_t>({spare, kLargestTogether, largest / kSampleThreads}));
}

template <int kPoints>
bool try_together(const SampleTask& task, int clouds, std::int64_t largest, Stream stream) {
  if (largest > static_cast<std::int64_t>(kPoints) * kSampleThreads * task.cloud_blocks) return false;
  const std::size_t places = static_cast<std::size_t>(clouds) * 2 * static_cast<std::size_t>(task.cloud_blocks);
  check(cudaMemsetAsync(task.exchange, 0, places * sizeof(SharedPair), stream), "farthest_point_sample");
  launch("farthest_point_sample", sample_together_kernel<kPoints>,
         dim3(static_cast<unsigned>(clouds) * static_cast<unsigned>(task.cloud_blocks)), kSampleThreads,
         (kSampleWarps + 1) * sizeof(Offer) + 3 * sizeof(float), stream, Launch::kCooperative, task);
  return true;
}

std::size_t lay_out(void* buffer, std::int64_t points, SampleTask& task) {
  Workspace workspace(buffer);
  task.exact = workspace.take<double>(static_cast<std::size_t>(points));
  task.rounded = workspace.take<float>(static_cast<std::size_t>(points));
  task.exchange = workspace.take<SharedPair>(2 * kLargestBlocks);
  return workspace.used();
}

}  // namespace

std::size_t farthest_point_workspace_bytes(std::int64_t points_in_all) {
  SampleTask task{};
  return lay_out(nullptr, points_in_all, task);
}

void farthest_point_sample(const float* points, std::int64_t points_in_all, const std::int64_t* first_rows,
                           const std::int64_t* sizes, int clouds, std::int64_t largest, std::int64_t n_select,
                           std::int64_t start, double floor, void* workspace, std::int64_t* picks,
                           const DeviceLimits& limits, Stream stream) {
  SampleTask task{points, first_rows, sizes, n_select, start, floor, nullptr, nullptr, picks, nullptr, 1};
  lay_out(workspace, points_in_all, task);
  task.cloud_blocks = blocks_per_cloud(clouds, largest, limits);
  if (task.cloud_blocks > 1) {
    if (try_together<2>(task, clouds, largest, stream)) return;
    if (try_together<5>(task, clouds, largest, stream)) return;
    if (try_together<8>(task, clouds, largest, stream)) return;
  }
  if (try_resident<8>(task, clouds, largest, limits, stream)) return;
  if (try_resident<24>(task, clouds, largest, limits, stream)) return;
  if (try_resident<40>(task, clouds, largest, limits, stream)) return;
  launch("farthest_point_sample", sample_kernel, dim3(static_cast<unsigned>(clouds)), kSampleThreads,
         SampleShared::bytes(0), stream, Launch::kPlain, task);
}

}  // namespace mmad::cuda
