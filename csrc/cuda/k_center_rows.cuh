// What a greedy k-centre selection on the GPU knows of every row: its squared distance m to the nearest centre, as an upper
// bound or exactly, and the few centres that may be the nearest. All of that is here for the selection of one device
// (k_center_greedy.cu) and for the shards of a selection over several (k_center_shard.cu).
//
// New centres meet all rows in one product with bounds (product.cu, as a search with k = 1 that is resumed). It leaves an
// upper bound of m and a few centres of each row, from which m is decided in float64 for the rows that come that far.
// Most never do. Where the prepared rows do not all fit on the device, the product alone needs them, and they pass through
// it in chunks (tile_stream.hpp).
#pragma once

#include <optional>

#include "cuda/product.cuh"
#include "cuda/radix_select.cuh"
#include "cuda/tile_stream.hpp"
#include "cuda/warp.cuh"
#include "cuda/workspace.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

constexpr int kRowWarps = 8;  // of the kernels that give a warp to a row
constexpr int kScanned = 4;   // centres that a row is held against together

struct Rows {  // the state of every row; a picked row has exact = -1
  Operand operand;
  const float* values;
  double* exact;  // m over the centres up to the last decision
  SearchState state;
  unsigned long long* keys;
};

struct Centers {
  Operand operand;
  const float* earlier;
  std::int64_t earlier_count;
  const std::int64_t* picks;

  __device__ __forceinline__ const float* row(std::int64_t center, const float* values) const {
    const int dim = operand.dim;
    return center < earlier_count ? earlier + center * dim : values + picks[center - earlier_count] * dim;
  }
};

// Keys order rows by hi: the bits of a float64 that is not negative order like the number. 0 is a picked row.
__device__ __forceinline__ unsigned long long key_of(double value) { return bit_cast<unsigned long long>(value) + 1; }
__device__ __forceinline__ double value_of(unsigned long long key) { return bit_cast<double>(key - 1); }

__device__ __forceinline__ double upper_bound(const Rows& rows, std::int64_t row) {
  const double exact = rows.exact[row];
  if (rows.state.counts[row] == 0) return exact;  // no centre since the last decision can be nearer
  // upper bounds T = m - |x|^2, and |x|^2 is known as a float32; both slacks are upwards.
  const double sum =
      static_cast<double>(rows.state.upper[row]) + static_cast<double>(rows.operand.squared[row]) * (1.0 + 3e-7);
  const double bound = sum > 0.0 ? sum * (1.0 + 1e-9) : 0.0;
  return bound < exact ? bound : exact;
}

// Which sum of squared differences decides.
struct FusedDistance {  // the one of all kernels of one device
  static __device__ __forceinline__ double of(const float* a, const float* b, int dim) {
    return exact_squared_distance(a, b, dim);
  }
};

// The one of the CPU (mmad/operand.hpp), to the bit: shards of one selection may be anywhere. A lane has one of its sums.
struct OrderedDistance {
  static __device__ __forceinline__ double of(const float* a, const float* b, int dim) {
    double sum = 0.0;
#pragma unroll 4
    for (int i = lane_id(); i < dim; i += kWarp) {
      const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
      sum = __dadd_rn(sum, __dmul_rn(difference, difference));
    }
    return warp_sum(sum);  // the upper half of the sums to the lower, until one is left
  }
};

// Sets the upper bound that the product uses to an exact m, rounded up; rows too long for float32 keep theirs.
__device__ __forceinline__ void set_upper(const Rows& rows, std::int64_t row, double m) {
  if (!(rows.operand.norm[row] <= kLargestNorm)) return;
  const double bound = m * (1.0 + 1e-9) - static_cast<double>(rows.operand.squared[row]) * (1.0 - 3e-7);
  const float rounded = float_up(bound);
  if (rounded < rows.state.upper[row]) rows.state.upper[row] = rounded;
}

// One warp: float32 squared distances of a row to kScanned others that travel together.
__device__ __forceinline__ void screen_centers(const float* values, const float* const (&others)[kScanned], int dim,
                                               float (&screened)[kScanned]) {
#pragma unroll
  for (int j = 0; j < kScanned; ++j) screened[j] = 0.0f;
  const auto add = [](float& sum, float a, float b) {
    const float difference = a - b;
    sum = multiply_add(difference, difference, sum);
  };
  if (dim % 4 == 0) {
    for (int i = lane_id() * 4; i < dim; i += kWarp * 4) {
      const float4 x = *reinterpret_cast<const float4*>(values + i);
#pragma unroll
      for (int j = 0; j < kScanned; ++j) {
        const float4 y = *reinterpret_cast<const float4*>(others[j] + i);
        add(screened[j], x.x, y.x);
        add(screened[j], x.y, y.y);
        add(screened[j], x.z, y.z);
        add(screened[j], x.w, y.w);
      }
    }
  } else {
    for (int i = lane_id(); i < dim; i += kWarp) {
#pragma unroll
      for (int j = 0; j < kScanned; ++j) add(screened[j], values[i], others[j][i]);
    }
  }
#pragma unroll
  for (int j = 0; j < kScanned; ++j) screened[j] = warp_sum(screened[j]);
}

// One warp: m of a row whose candidates did not fit, over all centres, screened in float32. The nearest is within the
// row's upper bound.
template <typename Distance>
__device__ double scan_centers(const Rows& rows, const Centers& centers, std::int64_t center_count, std::int64_t row) {
  const int dim = rows.operand.dim;
  const float error = difference_error(dim);
  const float* values = rows.values + row * dim;
  double m = rows.exact[row];
  double limit = upper_bound(rows, row);
  for (std::int64_t first = 0; first < center_count; first += kScanned) {
    const float* others[kScanned];
    float screened[kScanned];
#pragma unroll
    for (int j = 0; j < kScanned; ++j) {
      others[j] = centers.row(first + j < center_count ? first + j : center_count - 1, rows.values);
    }
    screen_centers(values, others, dim, screened);
#pragma unroll
    for (int j = 0; j < kScanned; ++j) {
      if (!may_be_within(screened[j], error, limit)) continue;
      const double distance = Distance::of(values, others[j], dim);
      m = distance < m ? distance : m;
      limit = distance < limit ? distance : limit;
    }
  }
  return m;
}

// One warp: m of a row in float64, over all centres; all lanes receive it.
template <typename Distance>
__device__ double decide(const Rows& rows, const Centers& centers, std::int64_t center_count, std::int64_t row) {
  const int dim = rows.operand.dim;
  const int count = rows.state.counts[row];
  const float* values = rows.values + row * dim;
  double m = rows.exact[row];
  if (count == 0) return m;
  if (count <= rows.state.capacity) {
    const float limit = rows.state.upper[row];
    for (int i = 0; i < count; ++i) {
      const Candidate candidate = rows.state.candidates[row * rows.state.capacity + i];
      if (candidate.lower > limit) continue;
      const double distance = Distance::of(values, centers.row(candidate.row, rows.values), dim);
      m = distance < m ? distance : m;
    }
  } else {
    m = scan_centers<Distance>(rows, centers, center_count, row);
  }
  __syncwarp();
  if (lane_id() == 0) {
    rows.exact[row] = m;
    rows.state.counts[row] = 0;
    set_upper(rows, row, m);
  }
  return m;
}

// The rows and centres of a selection in a workspace, and the kernels that work on all of them.
class SelectionRows {
 public:
  // Takes its part of a workspace, for at most `centers` centres; `values` are the original rows.
  void lay_out(Workspace& workspace, const Operand& operand, const float* values, std::int64_t centers,
               const DeviceLimits& limits);

  // Queues the start: no row has met a centre. Everything else is queued on the same stream.
  void begin(const DeviceLimits& limits, Stream stream);
  // All rows meet the centres [first, last), which have been prepared.
  void meet(std::int64_t first, std::int64_t last);
  // Sets the rows' keys from their upper bounds.
  void set_keys();

  Rows rows;
  Centers centers;

 private:
  void meet_part(const Operand& part, int tile, std::int64_t first, std::int64_t last);
  template <typename... Parameters, typename... Arguments>
  void launch_for(const char* name, void (*kernel)(Parameters...), std::int64_t count, Arguments&&... arguments);

  void* staged_ = nullptr;  // two chunks of tiles, where not all are resident
  int chunk_tiles_ = 0;
  DeviceLimits limits_;
  Stream stream_ = nullptr;
  std::optional<TileStream> tiles_;
};

}  // namespace mmad::cuda
