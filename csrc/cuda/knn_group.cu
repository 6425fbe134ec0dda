// The k nearest points of each center, one warp per center, in two passes over the points, which the eight warps of a
// block share in shared memory. The first pass takes the float32 minima of 256 classes of points. The k-th smallest of
// them is a bound: k classes have a point below it, so the k nearest are below it too. The second pass keeps what is
// below the bound, some 180 points for k = 128 (256 ln 2 if classes are hit at random), and these are sorted in float64.
// The bound only saves work. Should it let through more than the buffer holds, the buffer is sorted, the k best stay,
// and the k-th of them is the next bound.
#include "cuda/points.cuh"
#include "mmad/cuda_points.hpp"

namespace mmad::cuda {

namespace {

constexpr int kGroupWarps = 8;
constexpr int kChunk = 2048;    // points of a block's buffer; there are two buffers
constexpr int kLanePoints = 8;  // that a lane looks at in one step: two times four neighbors in memory
constexpr int kStep = kWarp * kLanePoints;
constexpr int kNoRow = 0x7FFFFFFF;
static_assert(kChunk % kStep == 0 && kStep >= 2 * kLargestGroup);

struct GroupTask {
  const float* points;
  std::int64_t count;  // of a cloud's points
  const float* centers;
  std::int64_t center_count;  // of a cloud's centers
  unsigned cloud_blocks;      // thread blocks per cloud
  int k;
  int room;  // entries of a warp's buffer, a power of two, at least 2 k and 64
  std::int64_t* indices;
};

// All points that are no farther than one whose float32 distance is at most `screened` have one of at most this: twice
// the error of screened_squared.
__device__ __forceinline__ float screen_above(float screened) { return multiply_add(screened, 1.000004f, 4e-30f); }

// Where a lane's four neighbors of half a step start. The lanes turn by 12 from step to step: an organized cloud whose
// rows are a multiple of a step long would otherwise have one image column in one class.
__device__ __forceinline__ int lane_start(int step_start, int half) {
  const int turned = (lane_id() + 12 * (step_start / kStep)) % kWarp;
  return step_start + half * (kStep / 2) + 4 * turned;
}

__device__ __forceinline__ void screen_step(const float* chunk, int step_start, const Point& center,
                                            float (&screened)[kLanePoints]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4* four = reinterpret_cast<const float4*>(chunk + 3 * lane_start(step_start, half));
    const float4 a = four[0], b = four[1], c = four[2];
    screened[4 * half] = screened_squared({a.x, a.y, a.z}, center);
    screened[4 * half + 1] = screened_squared({a.w, b.x, b.y}, center);
    screened[4 * half + 2] = screened_squared({b.z, b.w, c.x}, center);
    screened[4 * half + 3] = screened_squared({c.y, c.z, c.w}, center);
  }
}

// The first pass over a chunk.
__device__ __forceinline__ void lower_minima(float (&minima)[kLanePoints], const float* chunk, int here,
                                             const Point& center) {
#pragma unroll 2
  for (int start = 0; start < here; start += kStep) {
    float screened[kLanePoints];
    screen_step(chunk, start, center, screened);
#pragma unroll
    for (int i = 0; i < kLanePoints; ++i) minima[i] = fminf(minima[i], screened[i]);
  }
}

// The k-th smallest of the warp's minima, its low 11 bits rounded upwards: bit by bit, the largest prefix below which
// there are fewer than k of them. Floats that are not negative order like their bits.
__device__ float kth_minimum(const float (&minima)[kLanePoints], int k) {
  constexpr int low_bits = 11;
  unsigned prefix = 0;
  for (unsigned bit = 1u << 30; bit >= 1u << low_bits; bit >>= 1) {
    unsigned below = 0;
#pragma unroll
    for (int i = 0; i < kLanePoints; ++i) below += bit_cast<unsigned>(minima[i]) < (prefix | bit) ? 1 : 0;
    if (__reduce_add_sync(kFullWarp, below) < static_cast<unsigned>(k)) prefix |= bit;
  }
  const unsigned infinity = bit_cast<unsigned>(kInfinity32);
  return prefix >= infinity ? kInfinity32 : bit_cast<float>(prefix | ((1u << low_bits) - 1u));
}

// A warp's candidates; after a sort the first ones by (distance, row).
struct GroupBuffer {
  double* distances;
  std::int32_t* rows;
  int used = 0;
  double limit = kInfinity64;  // the k-th best, once there are k
  std::int32_t limit_row = kNoRow;
  float screen = kInfinity32;  // no float32 distance of the k nearest is above

  __device__ __forceinline__ bool greater(int a, int b) const {
    return distances[a] > distances[b] || (distances[a] == distances[b] && rows[a] > rows[b]);
  }

  // Bitonic sort by the warp, filled up to a power of two.
  __device__ void sort() const {
    int room = 2;
    while (room < used) room *= 2;
    for (int i = used + lane_id(); i < room; i += kWarp) {
      distances[i] = kInfinity64;
      rows[i] = kNoRow;
    }
    __syncwarp();
    for (int size = 2; size <= room; size *= 2) {
      for (int stride = size / 2; stride > 0; stride /= 2) {
        for (int t = lane_id(); t < room / 2; t += kWarp) {
          const int a = 2 * t - (t & (stride - 1));
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

  __device__ void shrink(int k) {
    sort();
    used = k;
    limit = distances[k - 1];
    limit_row = rows[k - 1];
    const float above = screen_above(float_up(limit));
    screen = above < screen ? above : screen;
    __syncwarp();  // before somebody's next candidates
  }

  // At most one candidate per lane, in any order of rows.
  __device__ __forceinline__ void offer(bool valid, double distance, std::int32_t row, int k, int room) {
    const bool keep = valid && (distance < limit || (distance == limit && row < limit_row));
    const unsigned keepers = __ballot_sync(kFullWarp, keep);
    if (keep) {
      const int place = used + __popc(keepers & ((1u << lane_id()) - 1u));
      distances[place] = distance;
      rows[place] = row;
    }
    used += __popc(keepers);
    __syncwarp();
    if (used + kWarp > room) shrink(k);
  }
};

// The second pass over one step's points: those that the screen lets through, at most one per lane in a round.
__device__ __forceinline__ void collect_step(GroupBuffer& buffer, const float* chunk, int step_start, int first_row,
                                             const Point& center, int k, int room) {
  float screened[kLanePoints];
  screen_step(chunk, step_start, center, screened);
  unsigned hits = 0;
#pragma unroll
  for (int i = 0; i < kLanePoints; ++i) hits |= screened[i] <= buffer.screen ? 1u << i : 0u;
  while (__any_sync(kFullWarp, hits != 0)) {
    double distance = 0.0;
    int row = 0;
    if (hits != 0) {
      const int i = __ffs(static_cast<int>(hits)) - 1;
      const int place = lane_start(step_start, i / 4) + i % 4;
      distance = exact_squared(load_point(chunk, place), center);
      row = first_row + place;
    }
    buffer.offer(hits != 0, distance, row, k, room);
    hits &= hits - 1;
  }
}

// Starts the copy of a chunk and fills its last step up with NaN, which no comparison lets through.
__device__ __forceinline__ void load_chunk(float* chunk, const float* points, int here) {
  for (int i = static_cast<int>(threadIdx.x); i < 3 * here; i += kGroupWarps * kWarp)
    copy_async_4(chunk + i, points + i);
  copy_async_commit();
  const int end = 3 * ((here + kStep - 1) / kStep * kStep);
  for (int i = 3 * here + static_cast<int>(threadIdx.x); i < end; i += kGroupWarps * kWarp) chunk[i] = kNaN32;
}

__global__ void __launch_bounds__(kGroupWarps* kWarp, 3) group_kernel(GroupTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  const std::int64_t cloud = blockIdx.x / task.cloud_blocks;
  const std::int64_t center_index = static_cast<std::int64_t>(blockIdx.x % task.cloud_blocks) * kGroupWarps + warp_id();
  const bool active = center_index < task.center_count;  // idle warps still help to load
  const std::int64_t index = cloud * task.center_count + center_index;
  const float* points = task.points + 3 * cloud * task.count;
  float* chunks = reinterpret_cast<float*>(memory);
  GroupBuffer buffer;
  buffer.distances = reinterpret_cast<double*>(chunks + 2 * 3 * kChunk) + warp_id() * task.room;
  buffer.rows =
      reinterpret_cast<std::int32_t*>(reinterpret_cast<double*>(chunks + 2 * 3 * kChunk) + kGroupWarps * task.room) +
      warp_id() * task.room;
  const Point center = load_point(task.centers, active ? index : 0);
  float minima[kLanePoints];
#pragma unroll
  for (float& minimum : minima) minimum = kInfinity32;

  const std::int64_t chunk_count = (task.count + kChunk - 1) / kChunk;
  const auto size_of = [&task](std::int64_t chunk) {
    const std::int64_t left = task.count - chunk * kChunk;
    return left < kChunk ? static_cast<int>(left) : kChunk;
  };
  load_chunk(chunks, points, size_of(0));
  for (std::int64_t turn = 0; turn < 2 * chunk_count; ++turn) {
    const std::int64_t number = turn < chunk_count ? turn : turn - chunk_count;
    const std::int64_t next = number + 1 < chunk_count ? number + 1 : 0;
    copy_async_wait<0>();
    __syncthreads();  // this chunk is there, and nobody reads the other buffer any more
    if (turn + 1 < 2 * chunk_count) {
      load_chunk(chunks + (turn + 1) % 2 * 3 * kChunk, points + 3 * kChunk * next, size_of(next));
    }
    if (!active) continue;
    const float* chunk = chunks + turn % 2 * 3 * kChunk;
    const int here = size_of(number);
    if (turn < chunk_count) {
      lower_minima(minima, chunk, here, center);
      continue;
    }
    if (number == 0) buffer.screen = screen_above(kth_minimum(minima, task.k));
    for (int start = 0; start < here; start += kStep) {
      collect_step(buffer, chunk, start, static_cast<int>(number * kChunk), center, task.k, task.room);
    }
  }
  if (!active) return;
  buffer.sort();
  // A point or center with NaN has no distance. What is missing for k then is filled up with the nearest point, or the
  // first where there is none, so that every row is one of the cloud.
  const std::int32_t spare = buffer.used > 0 ? buffer.rows[0] : 0;
  for (int j = lane_id(); j < task.k; j += kWarp) {
    task.indices[index * task.k + j] = j < buffer.used ? buffer.rows[j] : spare;
  }
}

}  // namespace

void knn_group(const float* points, std::int64_t count, const float* centers, std::int64_t center_count, int clouds,
               int k, std::int64_t* indices, Stream stream) {
  const unsigned cloud_blocks = blocks_for(center_count, kGroupWarps);
  GroupTask task{points, count, centers, center_count, cloud_blocks, k, 64, indices};
  while (task.room < 2 * k) task.room *= 2;
  const std::size_t shared = static_cast<std::size_t>(kGroupWarps) * task.room * 12 + 2 * kChunk * 3 * sizeof(float);
  launch("knn_group", group_kernel, dim3(cloud_blocks * static_cast<unsigned>(clouds)), kGroupWarps * kWarp, shared,
         stream, Launch::kPlain, task);
}

}  // namespace mmad::cuda
