// The product stage with wgmma, for sm_90a: 128 queries by 256 bank rows (two tiles) a block. One thread feeds a ring of
// stages with bulk copies (the operands already lie in device memory as the swizzled image of shared memory); two
// warpgroups take 64 queries each. All keys of a query are in the accumulators of four lanes, so a warp selects for its
// 16 queries alone, while other warps multiply.
#include "cuda/hopper.cuh"
#include "cuda/product.cuh"
#include "cuda/selection.cuh"

namespace mmad::cuda {

namespace {

constexpr int kGroupThreads = 128;
constexpr int kWgmmaThreads = 3 * kGroupThreads;  // a producer and two consumers
constexpr int kPairColumns = 2 * kTileRows;
constexpr int kQueueSlots = 8;  // keys that a row may offer in one round
constexpr int kRing = 4;
constexpr int kRingBytes = 3 * kBlockBytes;  // a stage: one block of queries, two of the bank
constexpr int kTerms = 3;                    // of a bank row: |m|^2, N, rho
constexpr int kTermSlots = 2;                // pairs of tiles whose terms are there: in use, and on their way

struct WgmmaLayout {
  static constexpr int kBankTerms = kRing * kRingBytes;  // [kTermSlots][kTerms][kPairColumns]
  static constexpr int kBarriers = kBankTerms + kTermSlots * kTerms * kPairColumns * 4;
  static constexpr int kBarrierCount = 2 * kRing + kTermSlots + 1;  // full and empty stages, free slots, the head start
  static constexpr int kSelection = kBarriers + (kBarrierCount + 1) / 2 * 16;

  static std::size_t bytes(int k) { return kSelection + SelectionShared::bytes(k, kQueueSlots); }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MMAD_CUDA_EMULATED)

constexpr int kGroupRows = 64;
constexpr int kHeadStart = 3;  // steps that the first warpgroup is ahead of the second

// A place in a ring, and the parity of the barriers' phase there.
struct Step {
  int at = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance(int places) {
    if (++at == places) {
      at = 0;
      parity ^= 1u;
    }
  }
};

struct Ring {
  unsigned char* stages;
  float* terms;
  TransferBarrier* full;   // a stage, and with a pair's first one its terms
  TransferBarrier* empty;  // a stage
  TransferBarrier* free;   // a slot of terms
  TransferBarrier* ahead;  // the first warpgroup has its head start

  __device__ __forceinline__ float* term_slot(const Step& slot) const {
    return terms + slot.at * kTerms * kPairColumns;
  }
  __device__ __forceinline__ unsigned char* stage(const Step& step) const { return stages + step.at * kRingBytes; }
};

struct Range {  // of bank tiles, taken in pairs; the second of the last pair may be missing
  int begin, end, depth_blocks;

  __device__ __forceinline__ bool whole(int tile) const { return tile + 1 < end; }
  __device__ __forceinline__ int second(int tile) const { return whole(tile) ? tile + 1 : tile; }
};

// One thread: keeps the ring full.
__device__ void feed(const ProductTask& task, const Ring& ring, const Range& range, int query_tile) {
  const std::size_t tile_bytes = static_cast<std::size_t>(range.depth_blocks) * kBlockBytes;
  const auto* queries = static_cast<const unsigned char*>(task.queries.values) + query_tile * tile_bytes;
  const auto* bank = static_cast<const unsigned char*>(task.bank.values);
  Step step, slot;
  for (int tile = range.begin; tile < range.end; tile += 2, slot.advance(kTermSlots)) {
    const bool whole = range.whole(tile);
    const int term_bytes = (whole ? 2 : 1) * kTileRows * 4;  // of each
    const unsigned char* a = queries;
    const unsigned char* b = bank + tile * tile_bytes;
    barrier_wait(ring.free + slot.at, slot.parity ^ 1u);
    for (int depth_block = 0; depth_block < range.depth_blocks; ++depth_block, step.advance(kRing)) {
      unsigned char* stage = ring.stage(step);
      TransferBarrier* full = ring.full + step.at;
      const int bytes = (whole ? kRingBytes : kRingBytes - kBlockBytes) + (depth_block == 0 ? kTerms * term_bytes : 0);
      barrier_wait(ring.empty + step.at, step.parity ^ 1u);
      barrier_arrive_expect(full, bytes);
      copy_bulk(stage, a, kBlockBytes, full);
      copy_bulk(stage + kBlockBytes, b, kBlockBytes, full);
      if (whole) copy_bulk(stage + 2 * kBlockBytes, b + tile_bytes, kBlockBytes, full);
      if (depth_block == 0) {
        const float* const terms[kTerms] = {task.bank.squared, task.bank.norm, task.bank.residual};
#pragma unroll
        for (int i = 0; i < kTerms; ++i) {
          const float* rows = terms[i] + static_cast<std::size_t>(tile) * kTileRows;
          copy_bulk(ring.term_slot(slot) + i * kPairColumns, rows, term_bytes, full);
        }
      }
      a += kBlockBytes;
      b += kBlockBytes;
    }
  }
}

// A warpgroup's 64 x (8 kGroups) sums over all depth blocks: of a pair of tiles, or of one. `ahead`, if any, is told when
// the head start is reached.
template <int kGroups>
__device__ __forceinline__ void multiply_tiles(float (&sums)[1][kGroups][4], const Ring& ring, int depth_blocks,
                                               int first_row, Step& step, bool leader, TransferBarrier* ahead) {
  const int head = min(kHeadStart, depth_blocks) - 1;
  TransferBarrier* read = nullptr;  // to be told when the step before has been read
  for (int depth_block = 0; depth_block < depth_blocks; ++depth_block, step.advance(kRing)) {
    barrier_wait(ring.full + step.at, step.parity);
    const MatrixDescriptor a = matrix_descriptor(ring.stage(step) + first_row * 128);
    const MatrixDescriptor b = matrix_descriptor(ring.stage(step) + kBlockBytes);
    warpgroup_fence();
#pragma unroll
    for (int k = 0; k < kTileDepth / 16; ++k) {
      multiply_64_rows(sums[0], advance(a, 32 * k), advance(b, 32 * k), depth_block > 0 || k > 0);
    }
    warpgroup_commit();
    warpgroup_wait<1>();
    if (read != nullptr && leader) barrier_arrive(read);
    if (ahead != nullptr && leader && depth_block == head) barrier_arrive(ahead);
    read = ring.empty + step.at;
  }
  warpgroup_wait<0>();
  if (leader) barrier_arrive(read);
}

// A warp's work on its 16 queries.
struct Consumer {
  const ProductTask& task;
  const SelectionShared& shared;
  const Ring& ring;
  const Range& range;
  int group_row;  // the warpgroup's first row of the query tile
  int warp_row;   // the warp's
  Step step, slot;
  TileBound tiles;  // those that are multiplied next

  // Two lanes of the four that hold a row's keys: the first owns row lane / 4, the second that and 8.
  __device__ __forceinline__ bool owns() const { return lane_id() % 4 < 2; }
  __device__ __forceinline__ int own_row() const { return warp_row + lane_id() / 4 + lane_id() % 4 * 8; }

  __device__ __forceinline__ void begin(RowOwner& owner, std::int64_t first_query, int split) {
    if (range.begin < range.end)
      tiles = tile_bound(task.bank, range.begin).with(tile_bound(task.bank, range.second(range.begin)));
    if (!owns()) return;
    owner.begin(task, shared, first_query + own_row(), split, own_row());
    owner.set_screen(tiles, shared, own_row());
  }

  // kTiles bank tiles from `tile` on: multiplies and selects. What the selection needs is loaded before.
  template <int kTiles>
  __device__ __forceinline__ void take(RowOwner& owner, int tile) {
    const std::uint32_t known = owns() ? owner.known_bound(task.state) : 0u;
    const int after = min(tile + kTiles, range.end - 1);
    const TileBound first = tile_bound(task.bank, after), second = tile_bound(task.bank, range.second(after));
    float sums[1][kTiles * kTileRows / 8][4];
    const bool leader = threadIdx.x % kGroupThreads == 0;
    TransferBarrier* ahead = group_row == 0 && tile == range.begin ? ring.ahead : nullptr;
    multiply_tiles(sums, ring, range.depth_blocks, group_row, step, leader, ahead);
    if (owns()) owner.take_hint(known);
    const TileBound next = first.with(second);
    select<kTiles>(owner, sums, tile, next);
    if (lane_id() == 0) barrier_arrive(ring.free + slot.at);
    slot.advance(kTermSlots);
    tiles = next;
  }

  template <int kTiles>
  __device__ __forceinline__ void select(RowOwner& owner, float (&sums)[1][kTiles * kTileRows / 8][4], int tile,
                                         const TileBound& next) const {
    const float* terms = ring.term_slot(slot);
    const int row = warp_row + lane_id() / 4;  // of this thread's accumulators
    const int column = lane_id() % 4 * 2;
    float limits[1][2];
    __syncwarp();  // the screens are there for all
    set_limits<false>(limits, task, tile, tile == range.begin, sums, shared, terms, nullptr, row, column);
    const bool nearest = task.wants_nearest_of(tile);
    bool again = true;
    while (again) {
      const bool left_over = offer_keys<false>(sums, shared, limits, nearest, terms, nullptr, row, column);
      again = __any_sync(kFullWarp, left_over) != 0;
      __syncwarp();
      if (owns()) {
        owner.drain(task, shared, tile, terms + kPairColumns, terms + 2 * kPairColumns, own_row());
        owner.set_screen(again ? tiles : next, shared, own_row());
      }
      __syncwarp();
    }
  }
};

// The second warpgroup starts a few steps after the first and stays behind: while one selects, the other multiplies.
__device__ void consume(Consumer consumer, std::int64_t first_query, int split) {
  RowOwner owner;
  consumer.begin(owner, first_query, split);
  if (consumer.group_row > 0 && consumer.range.begin < consumer.range.end) barrier_wait(consumer.ring.ahead, 0);
  int tile = consumer.range.begin;
  for (; consumer.range.whole(tile); tile += 2) consumer.take<2>(owner, tile);
  if (tile < consumer.range.end) consumer.take<1>(owner, tile);
  if (consumer.owns()) owner.finish(consumer.task, consumer.shared, split, consumer.own_row());
}

#endif

__global__ void __launch_bounds__(kWgmmaThreads, 1) product_wgmma_kernel(const ProductTask task) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MMAD_CUDA_EMULATED)
  MMAD_DYNAMIC_SHARED(memory);
  auto* barriers = reinterpret_cast<TransferBarrier*>(memory + WgmmaLayout::kBarriers);
  const Ring ring{memory,
                  reinterpret_cast<float*>(memory + WgmmaLayout::kBankTerms),
                  barriers,
                  barriers + kRing,
                  barriers + 2 * kRing,
                  barriers + 2 * kRing + kTermSlots};
  SelectionShared shared;
  shared.carve(memory + WgmmaLayout::kSelection, kQueueSlots);
  const BlockShare share(task, static_cast<int>(blockIdx.x));
  const Range range{share.begin, share.end, task.bank.depth_blocks};
  const std::int64_t first_query = static_cast<std::int64_t>(share.query_tile) * kTileRows;
  const int groups = task.queries.rows - first_query > kGroupRows ? 2 : 1;  // warpgroups that have queries
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRing; ++i) {
      barrier_init(ring.full + i, 1);
      barrier_init(ring.empty + i, groups);
    }
    for (int i = 0; i < kTermSlots; ++i) barrier_init(ring.free + i, groups * kGroupThreads / kWarp);
    barrier_init(ring.ahead, 1);
    barrier_init_fence();
  }
  __syncthreads();
  let_next_begin();
  wait_for_previous();
  if (threadIdx.x < kGroupThreads) {
    registers_down<40>();
    if (threadIdx.x == 0) feed(task, ring, range, share.query_tile);
  } else {
    registers_up<232>();
    const int warp = warp_id() - kGroupThreads / kWarp;
    const Consumer consumer{task, shared, ring, range, warp / 4 * kGroupRows, warp * 16, {}, {}, {}};
    if (warp / 4 < groups) consume(consumer, first_query, share.split);
  }
#endif
}

}  // namespace

void run_product_wgmma(const ProductTask& task, Stream stream) {
  const dim3 grid(static_cast<unsigned>(product_blocks(task)));
  launch("product (wgmma)", product_wgmma_kernel, grid, kWgmmaThreads, WgmmaLayout::bytes(task.state.k), stream,
         Launch::kChained, task);
}

}  // namespace mmad::cuda
