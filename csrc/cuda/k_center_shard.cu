// A shard on the GPU. All rows meet every centre in the product as it comes, which leaves upper bounds; what of them is at
// the bar or above it is decided in float64 when the coordinator asks. Centres are kept in full, for most of them are rows
// of other shards. The distances that decide are those of the CPU, to the bit: rows of the pool get their values from the
// coordinator, and must tie with equal rows outside it, here and elsewhere.
#include <algorithm>

#include "cuda/k_center_rows.cuh"
#include "mmad/cuda_k_center_shard.hpp"

namespace mmad::cuda {

namespace {

constexpr std::int64_t kStaged = 4096;  // row numbers and values that reach the device together

struct RiseState {
  SelectState select;
  unsigned long long above;
  unsigned long long below;  // as a key
  int written;
};

// Rows get values that are known elsewhere; without values they are picked. Negative numbers are left out.
__global__ void __launch_bounds__(kSelectThreads)
    settle_kernel(Rows rows, const std::int64_t* numbers, const double* squared, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (i >= count || numbers[i] < 0) return;
  const std::int64_t row = numbers[i];
  const double m = squared == nullptr ? -1.0 : squared[i];
  rows.exact[row] = m;
  rows.state.counts[row] = 0;
  if (m < 0.0) {
    rows.state.upper[row] = -kInfinity32;
  } else {
    set_upper(rows, row, m);
  }
}

__device__ __forceinline__ unsigned long long warp_largest(unsigned long long key) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const unsigned long long other = __shfl_xor_sync(kFullWarp, key, step);
    key = other > key ? other : key;
  }
  return key;
}

// Decides the rows at the bar or above it, and says how many still are and how large the others are.
__global__ void __launch_bounds__(kRowWarps* kWarp, 2)
    rise_kernel(Rows rows, Centers centers, std::int64_t center_count, unsigned long long bar, RiseState* state) {
  const int lane = lane_id();
  const int warp = static_cast<int>(blockIdx.x) * kRowWarps + warp_id();
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kRowWarps * kWarp;
  unsigned long long above = 0;  // of the warp
  unsigned long long below = 0;  // of the lane
  for (std::int64_t base = static_cast<std::int64_t>(warp) * kWarp; base < rows.operand.rows; base += step) {
    const std::int64_t row = base + lane;
    const bool inside = row < rows.operand.rows;
    unsigned long long key = inside ? rows.keys[row] : 0;
    unsigned todo = __ballot_sync(kFullWarp, key >= bar && rows.state.counts[row] != 0);
    while (todo != 0) {
      const int next = __ffs(static_cast<int>(todo)) - 1;
      todo &= todo - 1;
      const double m = decide<OrderedDistance>(rows, centers, center_count, base + next);
      if (lane == next) rows.keys[row] = key = key_of(m);
    }
    above += static_cast<unsigned>(__popc(__ballot_sync(kFullWarp, key >= bar)));
    if (key < bar && key > below) below = key;
  }
  below = warp_largest(below);
  if (lane != 0) return;
  if (above > 0) atomicAdd(&state->above, above);
  if (below > 0) atomicMax(&state->below, below);
}

// Writes the rows that the selection has taken or, without one, those at the bar or above it.
__global__ void __launch_bounds__(kSelectThreads)
    collect_kernel(Rows rows, unsigned long long bar, bool selected, RiseState* state, std::int64_t* found,
                   double* squared) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (row >= rows.operand.rows) return;
  const SelectEntry entry{rows.keys[row], ~static_cast<std::uint32_t>(row)};
  if (selected ? entry.key == 0 || !entry.at_least(state->select.threshold) : entry.key < bar) return;
  const int place = atomicAdd(&state->written, 1);
  found[place] = row;
  squared[place] = value_of(entry.key);
}

struct Parts {
  SelectionRows all;
  float* centers = nullptr;  // in full
  RiseState* state = nullptr;
  std::int64_t* numbers = nullptr;  // [kStaged]
  double* values = nullptr;         // [kStaged]
};

std::size_t lay_out(void* buffer, const KCenterShardRows& shard, const DeviceLimits& limits, Parts& parts) {
  Workspace workspace(buffer);
  parts.all.lay_out(workspace, shard.operand, shard.rows, shard.centers, limits);
  parts.centers = workspace.take<float>(static_cast<std::size_t>(shard.centers) * shard.operand.dim);
  parts.all.centers.earlier = parts.centers;
  parts.all.centers.earlier_count = shard.centers;
  parts.all.centers.picks = nullptr;
  parts.state = workspace.take<RiseState>(1);
  parts.numbers = workspace.take<std::int64_t>(kStaged);
  parts.values = workspace.take<double>(kStaged);
  return workspace.used();
}

// The key of a bar, which is not negative.
unsigned long long bar_key(double bar) { return bit_cast<unsigned long long>(bar > 0.0 ? bar : 0.0) + 1; }

}  // namespace

struct KCenterShard::Impl {
  KCenterShardRows shard;
  DeviceLimits limits;
  Stream stream;
  Parts parts;
  int device = 0;
  std::int64_t met = 0;

  Impl(const KCenterShardRows& shard_, const DeviceLimits& limits_, void* workspace, Stream stream_)
      : shard(shard_), limits(limits_), stream(stream_) {
    check(cudaGetDevice(&device), "k-center shard");
    lay_out(workspace, shard, limits, parts);
    parts.all.begin(limits, stream);
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {  // errors have been, or will be, seen elsewhere
    int current = 0;
    (void)cudaGetDevice(&current);
    (void)cudaSetDevice(device);  // whose default stream it may be
    (void)cudaStreamSynchronize(stream);
    (void)cudaSetDevice(current);
  }

  template <typename T>
  void copy(T* to, const T* from, std::int64_t count) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyDefault, stream),
          "k-center shard");
  }

  void set(const std::int64_t* rows, const double* squared, std::int64_t count) {
    for (std::int64_t first = 0; first < count; first += kStaged) {
      const std::int64_t n = std::min(kStaged, count - first);
      copy(parts.numbers, rows + first, n);
      if (squared != nullptr) copy(parts.values, squared + first, n);
      launch("k-center settle", settle_kernel, dim3(blocks_for(n, kSelectThreads)), kSelectThreads, 0, stream,
             Launch::kPlain, parts.all.rows, parts.numbers, squared == nullptr ? nullptr : parts.values, n);
    }
  }

  void meet(const float* centers, std::int64_t count) {
    const int dim = shard.operand.dim;
    copy(parts.centers + met * dim, centers, count * dim);
    const std::int64_t first = met / kPreparedTogether * kPreparedTogether;  // some are prepared again, to the same
    prepare_rows(parts.centers + first * dim, met + count - first, dim, shard.center, parts.all.centers.operand, first,
                 stream);
    parts.all.meet(met, met + count);
    met += count;
  }

  KCenterRise rise(double bar, std::int64_t at_most, void* results, std::int64_t* rows, double* squared) {
    const unsigned long long key = bar_key(bar);
    RiseState* state = parts.state;
    check(cudaMemsetAsync(state, 0, sizeof(RiseState), stream), "k-center rise");
    parts.all.set_keys();
    launch("k-center rise", rise_kernel, dim3(static_cast<unsigned>(4 * limits.multiprocessors)), kRowWarps * kWarp, 0,
           stream, Launch::kPlain, parts.all.rows, parts.all.centers, met, key, state);
    unsigned long long counts[2];  // above, below
    check(cudaMemcpyAsync(counts, &state->above, sizeof(counts), cudaMemcpyDefault, stream), "k-center rise");
    check(cudaStreamSynchronize(stream), "k-center rise");
    KCenterRise found;
    found.above = static_cast<std::int64_t>(counts[0]);
    found.below = counts[1] == 0 ? 0.0 : bit_cast<double>(counts[1] - 1);
    found.count = std::min(std::max<std::int64_t>(0, at_most), found.above);
    if (found.count > 0) collect(key, found, results, rows, squared);
    return found;
  }

  void collect(unsigned long long bar, const KCenterRise& found, void* results, std::int64_t* rows, double* squared) {
    const std::int64_t n = shard.operand.rows;
    const bool selected = found.count < found.above;
    if (selected) {
      run_select(parts.all.rows.keys, n, static_cast<int>(found.count), &parts.state->select,
                 2 * limits.multiprocessors, stream);
    }
    auto* found_rows = static_cast<std::int64_t*>(results);
    auto* found_squared = reinterpret_cast<double*>(found_rows + found.count);
    launch("k-center collect", collect_kernel, dim3(blocks_for(n, kSelectThreads)), kSelectThreads, 0, stream,
           Launch::kPlain, parts.all.rows, bar, selected, parts.state, found_rows, found_squared);
    copy(rows, found_rows, found.count);
    copy(squared, found_squared, found.count);
    check(cudaStreamSynchronize(stream), "k-center rise");
  }
};

std::size_t k_center_shard_workspace_bytes(const KCenterShardRows& rows, const DeviceLimits& limits) {
  Parts parts;
  return lay_out(nullptr, rows, limits, parts);
}

KCenterShard::KCenterShard(const KCenterShardRows& rows, const DeviceLimits& limits, void* workspace, Stream stream)
    : impl_(std::make_unique<Impl>(rows, limits, workspace, stream)) {}
KCenterShard::KCenterShard(KCenterShard&&) noexcept = default;
KCenterShard& KCenterShard::operator=(KCenterShard&&) noexcept = default;
KCenterShard::~KCenterShard() = default;

void KCenterShard::meet(const float* centers, std::int64_t count, const std::int64_t* own) {
  if (count == 0) return;
  impl_->set(own, nullptr, count);
  impl_->meet(centers, count);
}

void KCenterShard::settle(const std::int64_t* rows, const double* squared, std::int64_t count) {
  impl_->set(rows, squared, count);
}

KCenterRise KCenterShard::rise(double bar, std::int64_t at_most, void* results, std::int64_t* rows, double* squared) {
  return impl_->rise(bar, at_most, results, rows, squared);
}

}  // namespace mmad::cuda
