// The product stage with wgmma, for sm_90a: 128 queries by 256 bank rows (two tiles) a block. One thread feeds a ring of
// stages with bulk copies (the operands already lie in device memory as the swizzled image of shared memory); two
// warpgroups take 64 queries each, multiply, and select on their own, so that neither waits for the other.
#include "cuda/hopper.cuh"
#include "cuda/product.cuh"
#include "cuda/selection.cuh"

namespace mmad::cuda {

namespace {

constexpr int kGroupThreads = 128;
constexpr int kWgmmaThreads = 3 * kGroupThreads;  // a producer and two consumers
constexpr int kPairColumns = 2 * kTileRows;
constexpr int kRing = 4;
constexpr int kRingBytes = 3 * kBlockBytes;  // a stage: one block of queries, two of the bank

struct WgmmaLayout {
  static constexpr int kColumns = kRing * kRingBytes;                // [2 consumers][kPairColumns]: |m|^2
  static constexpr int kBarriers = kColumns + 2 * kPairColumns * 4;  // [2][kRing]: full, empty
  static constexpr int kSelection = kBarriers + 2 * kRing * 8;

  static std::size_t bytes(int k) { return kSelection + SelectionShared::bytes(k); }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MMAD_CUDA_EMULATED)

constexpr int kGroupRows = 64;
constexpr int kPairGroups = kPairColumns / 8;

struct Ring {
  unsigned char* stages;
  TransferBarrier* full;
  TransferBarrier* empty;

  __device__ __forceinline__ unsigned char* stage(int step) const { return stages + step % kRing * kRingBytes; }
  __device__ __forceinline__ unsigned parity(int step) const { return static_cast<unsigned>(step / kRing) & 1u; }
};

struct Range {  // of bank tiles, taken in pairs; the second of the last pair may be missing
  int begin, end, depth_blocks;

  __device__ __forceinline__ int second(int tile) const { return tile + 1 < end ? tile + 1 : tile; }
  __device__ __forceinline__ int steps() const { return (end - begin + 1) / 2 * depth_blocks; }
};

// One thread: keeps the ring full.
__device__ void feed(const ProductTask& task, const Ring& ring, const Range& range, int query_tile) {
  const auto* queries = static_cast<const unsigned char*>(task.queries.values) +
                        static_cast<std::size_t>(query_tile) * range.depth_blocks * kBlockBytes;
  const auto* bank = static_cast<const unsigned char*>(task.bank.values);
  const int steps = range.steps();
  for (int step = 0; step < steps; ++step) {
    const int tile = range.begin + step / range.depth_blocks * 2;
    const int depth_block = step % range.depth_blocks;
    const std::size_t first = static_cast<std::size_t>(tile) * range.depth_blocks + depth_block;
    const std::size_t second = static_cast<std::size_t>(range.second(tile)) * range.depth_blocks + depth_block;
    unsigned char* stage = ring.stage(step);
    TransferBarrier* full = ring.full + step % kRing;
    barrier_wait(ring.empty + step % kRing, ring.parity(step) ^ 1u);
    barrier_arrive_expect(full, kRingBytes);
    copy_bulk(stage, queries + static_cast<std::size_t>(depth_block) * kBlockBytes, kBlockBytes, full);
    copy_bulk(stage + kBlockBytes, bank + first * kBlockBytes, kBlockBytes, full);
    copy_bulk(stage + 2 * kBlockBytes, bank + second * kBlockBytes, kBlockBytes, full);
  }
}

// A warpgroup's 64 x 256 sums over all depth blocks of a pair of tiles; `step` counts through the ring.
__device__ __forceinline__ void multiply_pair(float (&sums)[1][kPairGroups][4], const Ring& ring, int depth_blocks,
                                              int first_row, int& step, bool leader) {
  for (int depth_block = 0; depth_block < depth_blocks; ++depth_block, ++step) {
    barrier_wait(ring.full + step % kRing, ring.parity(step));
    const MatrixDescriptor a = matrix_descriptor(ring.stage(step) + first_row * 128);
    const MatrixDescriptor b = matrix_descriptor(ring.stage(step) + kBlockBytes);
    warpgroup_fence();
#pragma unroll
    for (int k = 0; k < kTileDepth / 16; ++k) {
      multiply_64x256x16(sums[0], advance(a, 32 * k), advance(b, 32 * k), depth_block > 0 || k > 0);
    }
    warpgroup_commit();
    warpgroup_wait<1>();  // the step before has been read
    if (depth_block > 0 && leader) barrier_arrive(ring.empty + (step - 1) % kRing);
  }
  warpgroup_wait<0>();
  if (leader) barrier_arrive(ring.empty + (step - 1) % kRing);
}

__device__ __forceinline__ float column_term(const Operand& bank, const Range& range, int tile, int column) {
  const int which = tile + column / kTileRows;
  return which < range.end ? bank.squared[static_cast<std::size_t>(which) * kTileRows + column % kTileRows]
                           : kInfinity32;
}

__device__ void consume(const ProductTask& task, const SelectionShared& shared, float* columns, const Ring& ring,
                        const Range& range, int query_tile, int split, int group) {
  const int thread = static_cast<int>(threadIdx.x) % kGroupThreads;
  const int lane = lane_id();
  const int barrier = 1 + group;
  const int first_row = group * kGroupRows;
  const bool owns = thread < kGroupRows;  // a row of the query tile
  const int row = first_row + thread;
  RowOwner owner;
  if (owns) {
    owner.begin(task, shared, static_cast<std::int64_t>(query_tile) * kTileRows + row, split, row);
    if (range.begin < range.end) owner.set_screen(task.bank, shared, range.begin, range.second(range.begin), row);
  }
  float sums[1][kPairGroups][4];
  int step = 0;
  for (int tile = range.begin; tile < range.end; tile += 2) {
    if (owns) owner.refresh_hint(task.state);
    const float term0 = column_term(task.bank, range, tile, thread);
    const float term1 = column_term(task.bank, range, tile, thread + kGroupThreads);
    multiply_pair(sums, ring, range.depth_blocks, first_row, step, thread == 0);
    columns[thread] = term0;
    columns[thread + kGroupThreads] = term1;
    warpgroup_sync(barrier);  // columns and screens are there for all
    bool again = true;
    while (again) {
      const bool left_over =
          offer_keys<false>(sums, shared, columns, nullptr, first_row + thread / kWarp * 16 + lane / 4, lane % 4 * 2);
      again = warpgroup_or(barrier, left_over);
      if (owns) {
        owner.drain(task, shared, tile, row);
        const int next = again ? tile : tile + 2;
        if (next < range.end) owner.set_screen(task.bank, shared, next, range.second(next), row);
      }
      if (again) warpgroup_sync(barrier);
    }
  }
  if (owns) owner.finish(task, shared, split, row);
}

#endif

__global__ void __launch_bounds__(kWgmmaThreads, 1) product_wgmma_kernel(const ProductTask task) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MMAD_CUDA_EMULATED)
  MMAD_DYNAMIC_SHARED(memory);
  auto* barriers = reinterpret_cast<TransferBarrier*>(memory + WgmmaLayout::kBarriers);
  const Ring ring{memory, barriers, barriers + kRing};
  SelectionShared shared;
  shared.carve(memory + WgmmaLayout::kSelection);
  const int query_tile = static_cast<int>(blockIdx.x) % task.queries.tiles;
  const int split = static_cast<int>(blockIdx.x) / task.queries.tiles;
  const std::int64_t tiles = task.last_tile - task.first_tile;
  const Range range{task.first_tile + static_cast<int>(tiles * split / task.state.splits),
                    task.first_tile + static_cast<int>(tiles * (split + 1) / task.state.splits),
                    task.bank.depth_blocks};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRing; ++i) {
      barrier_init(ring.full + i, 1);
      barrier_init(ring.empty + i, 2);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < kGroupThreads) {
    registers_down<40>();
    if (threadIdx.x == 0) feed(task, ring, range, query_tile);
  } else {
    registers_up<232>();
    const int group = static_cast<int>(threadIdx.x) / kGroupThreads - 1;
    float* columns = reinterpret_cast<float*>(memory + WgmmaLayout::kColumns) + group * kPairColumns;
    consume(task, shared, columns, ring, range, query_tile, split, group);
  }
#endif
}

}  // namespace

void run_product_wgmma(const ProductTask& task, Stream stream) {
  const dim3 grid(static_cast<unsigned>(task.queries.tiles * task.state.splits));
  launch("product (wgmma)", product_wgmma_kernel, grid, kWgmmaThreads, WgmmaLayout::bytes(task.state.k), stream, false,
         task);
}

}  // namespace mmad::cuda
