// The product stage with mma.sync: 128 queries by 128 bank rows per block of four warps, 64 by 64 per warp, the depth
// in steps of 64 columns through a ring of asynchronous copies. Two blocks share a multiprocessor, so that one selects
// while the other multiplies.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/product.cuh"
#include "cuda/selection.cuh"

namespace mmad::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int kRowGroups = 4;     // 16 rows each
constexpr int kColumnGroups = 8;  // 8 columns each
constexpr int kQueueSlots = 8;    // keys that a row may offer in one round
constexpr int kColumnRing = 4;    // tiles whose column terms are in shared memory: one in use, up to two on their way

template <bool kInt8>
constexpr int kStageBytes = kBlockBytes + (kInt8 ? kInt8BlockBytes : kBlockBytes);

// Where things are in shared memory, behind the stages.
template <int kStages, bool kInt8>
struct Layout {
  static constexpr int kWide = kStages * kStageBytes<kInt8>;              // int8 only: the block in use, as bfloat16
  static constexpr int kColumns = kWide + (kInt8 ? kBlockBytes : 0);      // [kColumnRing][kTileRows]: |m|^2
  static constexpr int kScales = kColumns + kColumnRing * kTileRows * 4;  // the same for the scales of int8 banks
  static constexpr int kSelection = kScales + (kInt8 ? kColumnRing * kTileRows * 4 : 0);

  static std::size_t bytes(int k) { return kSelection + SelectionShared::bytes(k, kQueueSlots); }
};

// Walks over (tile, depth block) in the order of use and starts the copies of one step.
template <bool kInt8>
struct Loader {
  const unsigned char* queries;
  const unsigned char* bank;
  int tile;
  int end;
  int depth_block;
  float* columns;
  float* scales;

  __device__ __forceinline__ void start_next(const ProductTask& task, unsigned char* stage) {
    constexpr int bank_bytes = kInt8 ? kInt8BlockBytes : kBlockBytes;
    if (tile < end) {
      const int thread = static_cast<int>(threadIdx.x);
      const unsigned char* a = queries + static_cast<std::size_t>(depth_block) * kBlockBytes;
      const std::size_t block = static_cast<std::size_t>(tile) * task.bank.depth_blocks + depth_block;
      const unsigned char* b = bank + block * bank_bytes;
#pragma unroll
      for (int i = 0; i < kBlockBytes; i += kThreads * 16) copy_async_16(stage + i + thread * 16, a + i + thread * 16);
#pragma unroll
      for (int i = 0; i < bank_bytes; i += kThreads * 16) {
        copy_async_16(stage + kBlockBytes + i + thread * 16, b + i + thread * 16);
      }
      if (depth_block == 0) {
        const int ring = tile % kColumnRing * kTileRows + thread;
        copy_async_4(columns + ring, task.bank.squared + static_cast<std::size_t>(tile) * kTileRows + thread);
        if (kInt8) {
          copy_async_4(scales + ring, task.bank.scale + static_cast<std::size_t>(tile) * kTileRows + thread);
        }
      }
      if (++depth_block == task.bank.depth_blocks) {
        depth_block = 0;
        ++tile;
      }
    }
    copy_async_commit();  // an empty group at the end, so that the waits keep counting
  }
};

// int8 values are exact in bfloat16: 16 of them become two swizzled chunks.
__device__ __forceinline__ std::uint32_t widen_pair(std::uint32_t packed, int first) {
  const float low = static_cast<float>(static_cast<std::int8_t>(packed >> (8 * first)));
  const float high = static_cast<float>(static_cast<std::int8_t>(packed >> (8 * first + 8)));
  return bit_cast<std::uint32_t>(low) >> 16 | (bit_cast<std::uint32_t>(high) & 0xFFFF0000u);
}

__device__ __forceinline__ void widen_block(const unsigned char* narrow, unsigned char* wide) {
  for (int i = static_cast<int>(threadIdx.x); i < kInt8BlockBytes / 16; i += kThreads) {
    const uint4 source = reinterpret_cast<const uint4*>(narrow)[i];
    const int row = i / (kTileDepth / 16);
    const int chunk = i % (kTileDepth / 16) * 2;
    *reinterpret_cast<uint4*>(wide + swizzled_chunk(row, chunk)) =
        make_uint4(widen_pair(source.x, 0), widen_pair(source.x, 2), widen_pair(source.y, 0), widen_pair(source.y, 2));
    *reinterpret_cast<uint4*>(wide + swizzled_chunk(row, chunk + 1)) =
        make_uint4(widen_pair(source.z, 0), widen_pair(source.z, 2), widen_pair(source.w, 0), widen_pair(source.w, 2));
  }
}

// One depth block: this warp's 64 x 64 sums += a b^T.
__device__ __forceinline__ void multiply_block(float (&sums)[kRowGroups][kColumnGroups][4], const unsigned char* a,
                                               const unsigned char* b, int warp_row, int warp_column) {
  const int lane = lane_id();
  const unsigned char* a_row = a + (warp_row + lane % 16) * 128;
  const unsigned char* b_row = b + (warp_column + lane / 16 * 8 + lane % 8) * 128;
#pragma unroll
  for (int step = 0; step < kTileDepth / 16; ++step) {
    const int a_chunk = ((2 * step + lane / 16) ^ (lane & 7)) << 4;
    const int b_chunk = ((2 * step + lane / 8 % 2) ^ (lane & 7)) << 4;
    std::uint32_t left[kRowGroups][4];
    std::uint32_t right[kColumnGroups / 2][4];
#pragma unroll
    for (int i = 0; i < kRowGroups; ++i) load_matrix_x4(left[i], a_row + i * 16 * 128 + a_chunk);
#pragma unroll
    for (int j = 0; j < kColumnGroups / 2; ++j) load_matrix_x4(right[j], b_row + j * 16 * 128 + b_chunk);
#pragma unroll
    for (int i = 0; i < kRowGroups; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnGroups; ++j) {
        multiply_16x8x16(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
}

template <int kStages, bool kInt8>
__global__ void __launch_bounds__(kThreads, 2) product_kernel(const ProductTask task) {
  MMAD_DYNAMIC_SHARED(memory);
  using Places = Layout<kStages, kInt8>;
  unsigned char* wide = memory + Places::kWide;
  float* columns = reinterpret_cast<float*>(memory + Places::kColumns);
  float* scales = reinterpret_cast<float*>(memory + Places::kScales);
  SelectionShared shared;
  shared.carve(memory + Places::kSelection, kQueueSlots);

  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_id();
  const int warp_row = warp_id() % 2 * 64;
  const int warp_column = warp_id() / 2 * 64;
  const BlockShare share(task, static_cast<int>(blockIdx.x));
  const int query_tile = share.query_tile, begin = share.begin, end = share.end, split = share.split;
  let_next_begin();
  wait_for_previous();
  const int depth_blocks = task.bank.depth_blocks;

  RowOwner owner;  // thread t owns row t of the query tile
  owner.begin(task, shared, static_cast<std::int64_t>(query_tile) * kTileRows + thread, split, thread);
  if (begin < end) owner.set_screen(tile_bound(task.bank, begin), shared, thread);

  Loader<kInt8> loader{static_cast<const unsigned char*>(task.queries.values) +
                           static_cast<std::size_t>(query_tile) * depth_blocks * kBlockBytes,
                       static_cast<const unsigned char*>(task.bank.values),
                       begin,
                       end,
                       0,
                       columns,
                       scales};
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) loader.start_next(task, memory + i * kStageBytes<kInt8>);

  int stage = 0;
  float sums[kRowGroups][kColumnGroups][4];
  for (int tile = begin; tile < end; ++tile) {
#pragma unroll
    for (int i = 0; i < kRowGroups; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnGroups; ++j) sums[i][j][0] = sums[i][j][1] = sums[i][j][2] = sums[i][j][3] = 0.0f;
    }
    const std::uint32_t known = owner.known_bound(task.state);
    for (int depth_block = 0; depth_block < depth_blocks; ++depth_block) {
      copy_async_wait<kStages - 2>();
      __syncthreads();  // this step's data is there for all, and nobody reads the stage that is filled next
      const int next = stage == 0 ? kStages - 1 : stage - 1;
      loader.start_next(task, memory + next * kStageBytes<kInt8>);
      const unsigned char* a = memory + stage * kStageBytes<kInt8>;
      const unsigned char* b = a + kBlockBytes;
      if (kInt8) {
        widen_block(b, wide);
        __syncthreads();
        b = wide;
      }
      multiply_block(sums, a, b, warp_row, warp_column);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    owner.take_hint(known);
    const int ring = tile % kColumnRing * kTileRows;
    const int first_row = warp_row + lane / 4;
    const int first_column = warp_column + lane % 4 * 2;
    float limits[kRowGroups][2];
    set_limits<kInt8>(limits, task, tile, tile == begin, sums, shared, columns + ring, scales + ring, first_row,
                      first_column);
    const bool nearest = task.wants_nearest_of(tile);
    bool again = true;
    while (again) {
      const bool left_over =
          offer_keys<kInt8>(sums, shared, limits, nearest, columns + ring, scales + ring, first_row, first_column);
      again = __syncthreads_or(left_over) != 0;
      const std::size_t first_of_tile = static_cast<std::size_t>(tile) * kTileRows;
      owner.drain(task, shared, tile, task.bank.norm + first_of_tile, task.bank.residual + first_of_tile, thread);
      const int next = again ? tile : tile + 1;
      if (next < end) owner.set_screen(tile_bound(task.bank, next), shared, thread);
      if (again) __syncthreads();  // otherwise the next step's barrier does
    }
  }
  copy_async_wait<0>();
  owner.finish(task, shared, split, thread);
}

template <int kStages, bool kInt8>
void launch_stages(const ProductTask& task, const DeviceLimits& limits, Stream stream) {
  const dim3 grid(static_cast<unsigned>(product_blocks(task)));
  launch("product", product_kernel<kStages, kInt8>, grid, kThreads, Layout<kStages, kInt8>::bytes(task.state.k), stream,
         chained_launch(limits), task);
}

template <bool kInt8>
void launch_product(const ProductTask& task, const DeviceLimits& limits, Stream stream) {
  constexpr std::size_t reserved = 1024;  // a block's own, by the system
  if (2 * (Layout<3, kInt8>::bytes(task.state.k) + reserved) <= limits.shared_per_multiprocessor) {
    launch_stages<3, kInt8>(task, limits, stream);
  } else {
    launch_stages<2, kInt8>(task, limits, stream);
  }
}

// The environment variable is for measurements: 0 leaves the matrix unit of sm_90a alone.
bool use_wgmma(const Operand& bank, const DeviceLimits& limits) {
  const char* wish = std::getenv("MMAD_BANK_WGMMA");
  const bool wanted = wish == nullptr || std::strcmp(wish, "0") != 0;
  return wanted && !bank.int8 && runs_sm90a(limits);
}

}  // namespace

bool runs_sm90a(const DeviceLimits& limits) {
#if defined(MMAD_HAS_SM90A) || defined(MMAD_CUDA_EMULATED)
  return limits.compute_major == 9 && limits.compute_minor == 0;
#else
  (void)limits;
  return false;
#endif
}

Splits choose_splits(std::int64_t queries, const Operand& bank, const DeviceLimits& limits) {
  // Blocks take turns on one or two places per multiprocessor; to begin (a ring to fill, empty lists) costs a block about
  // as much as one tile, or two where it takes two at a time. A last query tile that only one warpgroup works on takes
  // about four fifths of the time (as many bytes come in), and so may have a few blocks less.
  const bool wide = use_wgmma(bank, limits);
  const std::int64_t places = (wide ? 1 : 2) * static_cast<std::int64_t>(limits.multiprocessors);
  const std::int64_t full = tiles_of(queries) - 1;
  const bool half = wide && full > 0 && queries - full * kTileRows <= kTileRows / 2;
  const auto longest = [&](int splits) { return (bank.tiles + splits - 1) / splits; };
  Splits best;
  std::int64_t best_cost = INT64_MAX;
  for (int all = 1; all <= std::min<std::int64_t>(bank.tiles, places); ++all) {
    for (int last = all; last >= (half ? std::max(1, all * 3 / 4) : all); --last) {
      const std::int64_t turns = (full * all + last + places - 1) / places;
      const int last_time = half ? 4 * longest(last) : 5 * longest(last);  // in fifths of a tile's
      const std::int64_t cost = turns * (std::max(5 * longest(all), last_time) + 5 * (wide ? 2 : 1));
      if (cost < best_cost) {
        best_cost = cost;
        best = {all, last};
      }
    }
  }
  return best;
}

void run_product(const ProductTask& task, const DeviceLimits& limits, Stream stream) {
  if (use_wgmma(task.bank, limits)) {
    run_product_wgmma(task, stream);
  } else if (task.bank.int8) {
    launch_product<true>(task, limits, stream);
  } else {
    launch_product<false>(task, limits, stream);
  }
}

}  // namespace mmad::cuda
