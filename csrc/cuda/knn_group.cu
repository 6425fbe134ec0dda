// The k nearest points of each centre: one warp per centre, points through shared memory in chunks that eight warps
// share. A warp keeps a buffer of twice k entries: the k best sorted, new ones behind them; when it is full it is
// sorted.
#include "cuda/points.cuh"
#include "mmad/cuda_points.hpp"

namespace mmad::cuda {

namespace {

constexpr int kGroupWarps = 8;
constexpr int kChunk = 1024;  // points

struct GroupTask {
  const float* points;
  std::int64_t count;
  const float* centers;
  std::int64_t center_count;
  int k;
  int room;  // entries of a warp's buffer, a power of two, at least 2 k and 64
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
          const int a = 2 * stride * (t / stride) + t % stride;
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

  // One point per lane; rows come in rising order, so that a point at the limit loses its tie.
  __device__ void offer(bool valid, const Point& point, const Point& center, int row, int k, int room) {
    double distance = 0.0;
    bool keep = valid && lower_squared(point, center) <= limit_above;
    if (keep) {
      distance = exact_squared(point, center);
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

__global__ void __launch_bounds__(kGroupWarps* kWarp) group_kernel(GroupTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  const int lane = lane_id();
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kGroupWarps + warp_id();
  const bool active = index < task.center_count;  // idle warps still help to load
  GroupBuffer buffer;
  buffer.distances = reinterpret_cast<double*>(memory) + warp_id() * task.room;
  buffer.rows = reinterpret_cast<std::int32_t*>(reinterpret_cast<double*>(memory) + kGroupWarps * task.room) +
                warp_id() * task.room;
  float* chunk = reinterpret_cast<float*>(memory + static_cast<std::size_t>(kGroupWarps) * task.room * 12);
  const Point center = load_point(task.centers, active ? index : 0);
  for (std::int64_t first = 0; first < task.count; first += kChunk) {
    const int here = task.count - first < kChunk ? static_cast<int>(task.count - first) : kChunk;
    __syncthreads();
    for (int i = thread; i < 3 * here; i += kGroupWarps * kWarp) chunk[i] = task.points[3 * first + i];
    __syncthreads();
    if (!active) continue;
    for (int base = 0; base < here; base += kWarp) {
      const int i = base + lane < here ? base + lane : here - 1;
      buffer.offer(base + lane < here, load_point(chunk, i), center, static_cast<int>(first) + i, task.k, task.room);
    }
  }
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
  GroupTask task{points, count, centers, center_count, k, 64, indices};
  while (task.room < 2 * k) task.room *= 2;
  const std::size_t shared = static_cast<std::size_t>(kGroupWarps) * task.room * 12 + kChunk * 3 * sizeof(float);
  launch("knn_group", group_kernel, dim3(blocks_for(center_count, kGroupWarps)), kGroupWarps * kWarp, shared, stream,
         false, task);
}

}  // namespace mmad::cuda
