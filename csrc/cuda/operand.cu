// Preparation of rows for the matrix unit: see mmad/cuda_operand.hpp for the layout and the bounds.
#include <algorithm>
#include <cmath>

#include "cuda/warp.cuh"
#include "cuda/workspace.hpp"
#include "mmad/cuda_device.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

namespace {

constexpr int kPrepareWarps = kPreparedTogether;  // a row each
constexpr int kLaneColumns = 4;                   // neighbouring columns that a lane takes at a time
constexpr int kSpan = kWarp * kLaneColumns;       // and a warp: two depth blocks
constexpr int kAhead = 3;                         // spans that are read before the first of them is needed
static_assert(kTileRows % kPrepareWarps == 0, "a block's rows share a tile");

std::size_t lay_out(void* buffer, Operand& operand) {
  Workspace workspace(buffer);
  const std::size_t padded = static_cast<std::size_t>(operand.tiles) * kTileRows;
  operand.values =
      workspace.take<char>(tile_bytes(operand.dim, operand.int8) * static_cast<std::size_t>(operand.resident));
  operand.squared = workspace.take<float>(padded);
  operand.norm = workspace.take<float>(padded);
  operand.residual = workspace.take<float>(padded);
  operand.scale = operand.int8 ? workspace.take<float>(padded) : nullptr;
  operand.tile_norm = workspace.take<float>(static_cast<std::size_t>(operand.tiles));
  operand.tile_residual = workspace.take<float>(static_cast<std::size_t>(operand.tiles));
  operand.largest_norm = workspace.take<float>(1);
  return workspace.used();
}

Operand shape_of(std::int64_t rows, int dim, bool int8, int resident) {
  Operand operand;
  operand.rows = rows;
  operand.dim = dim;
  operand.int8 = int8;
  operand.tiles = tiles_of(rows);
  operand.resident = resident < 0 || resident > operand.tiles ? operand.tiles : resident;
  operand.depth_blocks = depth_blocks_of(dim);
  return operand;
}

__device__ __forceinline__ void atomic_max_float(float* address, float value) {  // of values that are not negative
  atomicMax(reinterpret_cast<unsigned*>(address), bit_cast<unsigned>(value));
}

// The norms of one row, or one lane's part of it, squared, in float64: of the centred row, of the rounded one and of what
// lies between them. Conversions between float32 and float64 are the slowest instructions here: bfloat16 rows, queries
// among them, take two per column.
struct RowSums {
  double squared = 0.0;
  double rounded = 0.0;
  double residual = 0.0;

  __device__ __forceinline__ void add(double exact, double narrow, double gap) {
    squared = fma(exact, exact, squared);
    rounded = fma(narrow, narrow, rounded);
    residual = fma(gap, gap, residual);
  }

  // The gap of a float32 and its bfloat16 is a float32 (both are multiples of the float32's last place), and in float64
  // the way back from it is exact too.
  __device__ __forceinline__ void add_half(float value, float half) {
    const double exact = static_cast<double>(value);
    const double gap = static_cast<double>(value - half);
    add(exact, exact - gap, gap);
  }
};

// A float64 sum of D <= 2^14 squares is within D 2^-53 < 2^-38 of the exact one; 2^-30 covers that and the square root.
// The difference to the centre, rounded to float32, is within u = 2^-24 of the true one in every column: the norm takes
// 2 u more for that, the residual the norm times u.
constexpr double kRoundUp = 1.0 + 1.0 / (1 << 30);
constexpr double kNormUp = 1.0 + 2.0 / (1 << 24);

struct RowBounds {
  float norm = 0.0f;
  float residual = 0.0f;
};

__device__ __forceinline__ RowBounds write_bounds(const Operand& operand, std::int64_t row, const RowSums& sums) {
  RowBounds bounds;
  const double norm = sqrt(sums.rounded > sums.squared ? sums.rounded : sums.squared) * kNormUp;
  bounds.norm = float_up(norm);
  bounds.residual = float_up((sqrt(sums.residual) + norm / (1 << 24)) * kRoundUp);
  if (lane_id() == 0) {
    operand.squared[row] = static_cast<float>(sums.squared);
    operand.norm[row] = bounds.norm;
    operand.residual[row] = bounds.residual;
  }
  return bounds;
}

template <bool kInt8>
__device__ void write_padding(const Operand& operand, std::int64_t row) {
  constexpr int row_bytes = kInt8 ? kTileDepth : kTileDepth * 2;
  const int lane = lane_id();
  unsigned char* place = tile_values(operand, row / kTileRows) + row % kTileRows * row_bytes;
  for (int b = 0; b < operand.depth_blocks; ++b, place += row_bytes * kTileRows) {
    if (lane < row_bytes / 16) reinterpret_cast<uint4*>(place)[lane] = make_uint4(0, 0, 0, 0);
  }
  if (lane == 0) {
    operand.squared[row] = kInfinity32;
    operand.norm[row] = 0.0f;
    operand.residual[row] = 0.0f;
    if (kInt8) operand.scale[row] = 0.0f;
  }
}

// A lane's columns from `column` on, zeros behind the row, kWidth in one access: kWidth divides `dim`, and `row` is
// aligned to as many.
template <int kWidth>
__device__ __forceinline__ void load_columns(const float* row, int column, int dim, float (&values)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; i += kWidth) {
    const bool inside = column + i < dim;
    if constexpr (kWidth == 4) {
      const float4 x = inside ? *reinterpret_cast<const float4*>(row + column) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      values[0] = x.x;
      values[1] = x.y;
      values[2] = x.z;
      values[3] = x.w;
    } else if constexpr (kWidth == 2) {
      const float2 x = inside ? *reinterpret_cast<const float2*>(row + column + i) : float2{0.0f, 0.0f};
      values[i] = x.x;
      values[i + 1] = x.y;
    } else {
      values[i] = inside ? row[column + i] : 0.0f;
    }
  }
}

__device__ __forceinline__ std::uint32_t int8_of(double value, float scale, double& narrow) {
  double level = scale > 0.0f ? rint(value / static_cast<double>(scale)) : 0.0;
  level = level > 127.0 ? 127.0 : level < -127.0 ? -127.0 : level;
  narrow = level * static_cast<double>(scale);
  return static_cast<std::uint32_t>(static_cast<int>(level)) & 0xFFu;
}

// One warp: the scale that takes a row's largest value to 127.
__device__ __forceinline__ float scale_of(const float* row, const float* center, int dim) {
  float largest = 0.0f;
  for (int column = lane_id(); column < dim; column += kWarp) {
    largest = fmaxf(largest, fabsf(row[column] - center[column]));
  }
  return warp_max(largest) / 127.0f;
}

// A lane's columns, rounded and written; `column` counts from the start of the row.
template <bool kInt8>
__device__ __forceinline__ void write_columns(unsigned char* tile, int tile_row, int column, float scale,
                                              const float (&x)[kLaneColumns], RowSums& sums) {
  const std::size_t block = static_cast<std::size_t>(column / kTileDepth);
  const int inside = column % kTileDepth;
  if constexpr (kInt8) {
    std::uint32_t packed = 0;
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      const double exact = static_cast<double>(x[i]);
      double narrow;
      packed |= int8_of(exact, scale, narrow) << 8 * i;
      sums.add(exact, narrow, exact - narrow);
    }
    *reinterpret_cast<std::uint32_t*>(tile + block * kInt8BlockBytes + tile_row * kTileDepth + inside) = packed;
  } else {
    std::uint32_t halves[kLaneColumns];
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      const std::uint16_t half = to_bfloat16(x[i]);
      halves[i] = half;
      sums.add_half(x[i], from_bfloat16(half));
    }
    *reinterpret_cast<uint2*>(tile + block * kBlockBytes + swizzled_offset(tile_row, inside)) =
        uint2{halves[0] | halves[1] << 16, halves[2] | halves[3] << 16};
  }
}

// One warp: a row of the source.
template <bool kInt8, int kWidth>
__device__ __forceinline__ RowBounds prepare_row(const float* source, const float* center, const Operand& operand,
                                                 std::int64_t row) {
  const int dim = operand.dim;
  const float scale = kInt8 ? scale_of(source, center, dim) : 0.0f;
  unsigned char* tile = tile_values(operand, row / kTileRows);
  const int tile_row = static_cast<int>(row % kTileRows);
  const int columns = operand.depth_blocks * kTileDepth;
  RowSums sums;
  for (int first = lane_id() * kLaneColumns; first < columns; first += kAhead * kSpan) {
    float values[kAhead][kLaneColumns];
    float centers[kAhead][kLaneColumns];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      load_columns<kWidth>(source, first + j * kSpan, dim, values[j]);
      load_columns<kWidth>(center, first + j * kSpan, dim, centers[j]);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (first + j * kSpan >= columns) continue;
      float x[kLaneColumns];
#pragma unroll
      for (int i = 0; i < kLaneColumns; ++i) x[i] = values[j][i] - centers[j][i];
      write_columns<kInt8>(tile, tile_row, first + j * kSpan, scale, x, sums);
    }
  }
  __syncwarp();
  sums.squared = warp_sum(sums.squared);
  sums.rounded = warp_sum(sums.rounded);
  sums.residual = warp_sum(sums.residual);
  if (kInt8 && lane_id() == 0) operand.scale[row] = scale;
  return write_bounds(operand, row, sums);
}

// One warp per row, eight rows of one tile per block, whose largest norms go to the tile together: many atomic operations
// on one address would wait for each other.
template <bool kInt8, int kWidth>
__global__ void __launch_bounds__(kPrepareWarps* kWarp)
    prepare_kernel(const float* rows, std::int64_t count, std::int64_t stride, const float* center, Operand operand,
                   std::int64_t first, std::int64_t last) {
  let_next_begin();
  MMAD_DYNAMIC_SHARED(memory);
  auto* of_rows = reinterpret_cast<RowBounds*>(memory);  // [kPrepareWarps]
  const int lane = lane_id();
  const std::int64_t first_index = static_cast<std::int64_t>(blockIdx.x) * kPrepareWarps;
  const std::int64_t index = first_index + warp_id();
  RowBounds bounds;
  if (index < count) {
    bounds = prepare_row<kInt8, kWidth>(rows + index * stride, center, operand, first + index);
  } else if (first + index < last) {
    write_padding<kInt8>(operand, first + index);
  }
  if (operand.tile_norm == nullptr) return;
  if (lane == 0) of_rows[warp_id()] = bounds;
  __syncthreads();
  if (warp_id() != 0) return;
  if (lane < kPrepareWarps) bounds = of_rows[lane];
  const float norm = warp_max(bounds.norm);
  const float residual = warp_max(bounds.residual);
  if (lane != 0) return;
  const std::int64_t tile = (first + first_index) / kTileRows;
  atomic_max_float(&operand.tile_norm[tile], norm);
  atomic_max_float(&operand.tile_residual[tile], residual);
  atomic_max_float(operand.largest_norm, norm);
}

template <int kWidth>
void launch_prepare(const float* rows, std::int64_t count, std::int64_t stride, const float* center,
                    const Operand& operand, std::int64_t first, std::int64_t last, Stream stream) {
  const dim3 grid(blocks_for(last - first, kPrepareWarps));
  launch("prepare_rows", operand.int8 ? prepare_kernel<true, kWidth> : prepare_kernel<false, kWidth>, grid,
         kPrepareWarps * kWarp, kPrepareWarps * sizeof(RowBounds), stream, Launch::kPlain, rows, count, stride, center,
         operand, first, last);
}

// How many columns one access may take: 4, 2 or 1, so that every row, and the centre, starts at a multiple of them and
// none is cut. Rows may lie in host memory, which is read over the bus.
int access_width(const float* rows, std::int64_t stride, const float* center, int dim) {
  for (const int width : {4, 2}) {
    const auto bytes = static_cast<std::uintptr_t>(width) * sizeof(float);
    const bool aligned =
        reinterpret_cast<std::uintptr_t>(rows) % bytes == 0 && reinterpret_cast<std::uintptr_t>(center) % bytes == 0;
    if (aligned && dim % width == 0 && stride % width == 0) return width;
  }
  return 1;
}

}  // namespace

std::size_t operand_bytes(std::int64_t rows, int dim, bool int8, int resident) {
  Operand operand = shape_of(rows, dim, int8, resident);
  return lay_out(nullptr, operand);
}

Operand operand_view(void* buffer, std::int64_t rows, int dim, bool int8, int resident, void* streamed) {
  Operand operand = shape_of(rows, dim, int8, resident);
  lay_out(buffer, operand);
  operand.streamed = streamed;
  return operand;
}

Operand operand_part(const Operand& operand, int first, int count, void* values) {
  const std::int64_t first_row = static_cast<std::int64_t>(first) * kTileRows;
  Operand part = operand;
  part.values = values;
  part.streamed = nullptr;
  part.squared += first_row;
  part.norm += first_row;
  part.residual += first_row;
  if (part.int8) part.scale += first_row;
  part.tile_norm += first;
  part.tile_residual += first;
  part.rows = std::min(operand.rows - first_row, static_cast<std::int64_t>(count) * kTileRows);
  part.tiles = part.resident = count;
  return part;
}

void operand_begin(const Operand& operand, Stream stream) {
  // lay_out puts the three next to each other.
  const auto* first = reinterpret_cast<const char*>(operand.tile_norm);
  const auto* end = reinterpret_cast<const char*>(operand.largest_norm + 1);
  check(cudaMemsetAsync(operand.tile_norm, 0, static_cast<std::size_t>(end - first), stream), "operand_begin");
}

void prepare_rows(const float* rows, std::int64_t count, std::int64_t stride, const float* center,
                  const Operand& operand, std::int64_t first, Stream stream) {
  const bool whole = first + count == operand.rows;  // then the padding of the last tile is written too
  const std::int64_t last = whole ? static_cast<std::int64_t>(operand.tiles) * kTileRows : first + count;
  const int width = access_width(rows, stride, center, operand.dim);
  const auto launch_it = width == 4 ? launch_prepare<4> : width == 2 ? launch_prepare<2> : launch_prepare<1>;
  launch_it(rows, count, stride, center, operand, first, last, stream);
}

}  // namespace mmad::cuda
