// The k nearest points of each centre: one warp per centre, points through shared memory in chunks that eight warps
// share, twice. First a histogram of the distances' upper bounds gives a bound of the k-th smallest, at most a quarter
// above it. Then a warp keeps the points that may be within that in a buffer of twice k entries, seldom more than fit:
// when it is full it is sorted, and the k best stay. A last sort gives the order.
#include <algorithm>

#include "cuda/points.cuh"
#include "mmad/cuda_points.hpp"

namespace mmad::cuda {

namespace {

constexpr int kGroupWarps = 8;
constexpr int kChunk = 1024;  // points
constexpr int kChunkFloats = 3 * kChunk;
constexpr int kAtOnce = 4;   // points that a lane screens before the warp looks at them
constexpr int kBins = 1024;  // of the histogram: a float's exponent and two bits more
constexpr int kBinShift = 21;
static_assert(kBins == kWarp * kWarp, "a bin per lane of a lane");

struct GroupTask {
  const float* points;
  std::int64_t count;
  const float* centers;
  std::int64_t center_count;
  int k;
  int room;        // entries of a warp's buffer, a power of two, at least 2 k and 64
  int warp_bytes;  // of a warp's buffer or histogram, which lie in one place
  std::int64_t* indices;
};

// Entries ordered by (distance, row); the first `used` are real, the rest is filled up before a sort.
struct GroupBuffer {
  double* distances;
  std::int32_t* rows;
  int used = 0;
  double limit = kInfinity64;  // of the k-th best, once there are k
  float limit_above = kInfinity32;

  __device__ __forceinline__ bool greater(int a, int b) const {
    return distances[a] > distances[b] || (distances[a] == distances[b] && rows[a] > rows[b]);
  }

  // Bitonic sort by the warp.
  __device__ void sort(int room) const {
    for (int i = used + lane_id(); i < room; i += kWarp) {
      distances[i] = kInfinity64;
      rows[i] = 0x7FFFFFFF;
    }
    __syncwarp();
    for (int size = 2; size <= room; size *= 2) {
      for (int stride = size / 2; stride > 0; stride /= 2) {
        for (int t = lane_id(); t < room / 2; t += kWarp) {
          const int a = 2 * t - (t & (stride - 1));  // the t-th entry whose bit `stride` is not set
          const int b = a + stride;
          const bool rising = (a & size) == 0;
          if (greater(a, b) == rising) {
            const double distance = distances[a];
            const std::int32_t row = rows[a];
            distances[a] = distances[b];
            rows[a] = rows[b];
            distances[b] = distance;
            rows[b] = row;
          }
        }
        __syncwarp();
      }
    }
  }

  __device__ void shrink(int k, int room) {
    sort(room);
    if (used < k) return;
    used = k;
    limit = distances[k - 1];
    limit_above = float_up(limit);
  }

  __device__ __forceinline__ bool may_enter(float screened) const { return below_screened(screened) <= limit_above; }

  // One point per lane, screened as NaN where there is none; rows come in rising order, so that a point at the limit
  // loses its tie.
  __device__ void offer(float screened, const float* point, const Point& center, int row, int k, int room) {
    double distance = 0.0;
    bool keep = may_enter(screened);
    if (keep) {
      distance = exact_squared(load_point(point, 0), center);
      keep = distance < limit || used < k;
    }
    const unsigned keepers = __ballot_sync(kFullWarp, keep);
    if (keepers == 0) return;
    if (keep) {
      const int place = used + __popc(keepers & ((1u << lane_id()) - 1u));
      distances[place] = distance;
      rows[place] = row;
    }
    used += __popc(keepers);
    __syncwarp();
    if (used + kWarp > room) shrink(k, room);
  }
};

// The cloud's points, a chunk at a time, in one of two buffers while the next chunk comes into the other. All threads
// of the block take part; `use` gets a chunk's points, their number and the first one's row.
template <typename Use>
__device__ void for_chunks(const GroupTask& task, float* buffers, const Use& use) {
  const auto start = [&](std::int64_t first) {
    const std::int64_t floats = 3 * (task.count - first);
    const int here = floats < kChunkFloats ? static_cast<int>(floats) : kChunkFloats;
    float* to = buffers + first / kChunk % 2 * kChunkFloats;
    for (int i = static_cast<int>(threadIdx.x); i < here; i += kGroupWarps * kWarp) {
      copy_async_4(to + i, task.points + 3 * first + i);
    }
  };
  start(0);
  copy_async_commit();
  for (std::int64_t first = 0; first < task.count; first += kChunk) {
    if (first + kChunk < task.count) start(first + kChunk);
    copy_async_commit();  // an empty group at the end, so that the wait keeps counting
    copy_async_wait<1>();
    __syncthreads();
    const std::int64_t left = task.count - first;
    use(buffers + first / kChunk % 2 * kChunkFloats, left < kChunk ? static_cast<int>(left) : kChunk,
        static_cast<int>(first));
    __syncthreads();  // nobody reads the buffer that is filled next
  }
}

__device__ __forceinline__ int warp_prefix(int value) {  // the sum up to and with this lane's
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int left = __shfl_up_sync(kFullWarp, value, step);
    if (lane_id() >= step) value += left;
  }
  return value;
}

// One warp: a float that is not below the k-th smallest of the values in the histogram; infinity where there are fewer.
__device__ float kth_bound(const int* histogram, int k) {
  const int lane = lane_id();
  int sum = 0;
  for (int i = 0; i < kWarp; ++i) sum += histogram[lane * kWarp + (i + lane) % kWarp];  // all banks at a time
  const int up_to = warp_prefix(sum);
  const unsigned reached = __ballot_sync(kFullWarp, up_to >= k);
  if (reached == 0) return kInfinity32;
  const int of = __ffs(static_cast<int>(reached)) - 1;
  const int before = __shfl_sync(kFullWarp, up_to - sum, of);
  const int inside = before + warp_prefix(histogram[of * kWarp + lane]);
  const int bin = of * kWarp + __ffs(static_cast<int>(__ballot_sync(kFullWarp, inside >= k))) - 1;
  return bit_cast<float>(static_cast<std::uint32_t>(bin + 1) << kBinShift);  // where the next bin begins
}

__global__ void __launch_bounds__(kGroupWarps* kWarp) group_kernel(GroupTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  const int lane = lane_id();
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kGroupWarps + warp_id();
  const bool active = index < task.center_count;  // idle warps still help to load
  unsigned char* of_warp = memory + static_cast<std::size_t>(warp_id()) * task.warp_bytes;
  float* chunks = reinterpret_cast<float*>(memory + static_cast<std::size_t>(kGroupWarps) * task.warp_bytes);
  const Point center = load_point(task.centers, active ? index : 0);

  int* histogram = reinterpret_cast<int*>(of_warp);
  for (int i = lane; i < kBins; i += kWarp) histogram[i] = 0;
  __syncwarp();
  for_chunks(task, chunks, [&](const float* chunk, int here, int) {
    if (!active) return;
#pragma unroll 4
    for (int i = lane; i < here; i += kWarp) {
      const float above = above_screened(screened_squared(load_point(chunk, i), center));
      // Bits of floats that are not negative order like the floats; infinity and NaN have no bin.
      if (above < kInfinity32) atomicAdd(&histogram[bit_cast<std::uint32_t>(above) >> kBinShift], 1);
    }
  });
  __syncwarp();
  GroupBuffer buffer;
  buffer.limit_above = kth_bound(histogram, task.k);
  __syncwarp();  // the buffer takes the histogram's place
  buffer.distances = reinterpret_cast<double*>(of_warp);
  buffer.rows = reinterpret_cast<std::int32_t*>(buffer.distances + task.room);
  for_chunks(task, chunks, [&](const float* chunk, int here, int first) {
    if (!active) return;
    for (int base = lane; base - lane < here; base += kAtOnce * kWarp) {
      float screened[kAtOnce];
      bool any = false;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = base + j * kWarp;
        screened[j] = i < here ? screened_squared(load_point(chunk, i), center) : kNaN32;
        any = any || buffer.may_enter(screened[j]);
      }
      if (!__any_sync(kFullWarp, any)) continue;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int i = base + j * kWarp;
        buffer.offer(screened[j], chunk + 3 * i, center, first + i, task.k, task.room);
      }
    }
  });
  if (!active) return;
  buffer.sort(task.room);
  // A point or centre with NaN has no distance. What is missing for k then is filled up with the nearest point, or the
  // first where there is none, so that every row is one of the cloud.
  const std::int32_t spare = buffer.used > 0 ? buffer.rows[0] : 0;
  for (int j = lane; j < task.k; j += kWarp) {
    task.indices[index * task.k + j] = j < buffer.used ? buffer.rows[j] : spare;
  }
}

}  // namespace

void knn_group(const float* points, std::int64_t count, const float* centers, std::int64_t center_count, int k,
               std::int64_t* indices, Stream stream) {
  GroupTask task{points, count, centers, center_count, k, 64, 0, indices};
  while (task.room < 2 * k) task.room *= 2;
  task.warp_bytes = std::max(task.room * 12, kBins * 4);
  const std::size_t shared = static_cast<std::size_t>(kGroupWarps) * task.warp_bytes + 2 * kChunkFloats * sizeof(float);
  launch("knn_group", group_kernel, dim3(blocks_for(center_count, kGroupWarps)), kGroupWarps * kWarp, shared, stream,
         false, task);
}

}  // namespace mmad::cuda
