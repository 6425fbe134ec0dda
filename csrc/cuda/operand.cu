// Preparation of rows for the matrix unit: see mmad/cuda_operand.hpp for the layout and the bounds.
#include <algorithm>
#include <cmath>

#include "cuda/warp.cuh"
#include "cuda/workspace.hpp"
#include "mmad/cuda_device.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

namespace {

constexpr int kPrepareWarps = 8;

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

struct RowSums {  // of one row, or one lane's part of it, in float64
  double squared = 0.0;
  double rounded = 0.0;
  double residual = 0.0;

  __device__ __forceinline__ void add(double exact, double narrow) {
    squared += exact * exact;
    rounded += narrow * narrow;
    residual += (exact - narrow) * (exact - narrow);
  }
};

// A float64 sum of D <= 2^14 squares is within D 2^-53 < 2^-38 of the exact one; 2^-30 covers that, the subtraction of
// the centre and the square root.
constexpr double kRoundUp = 1.0 + 1.0 / (1 << 30);

__device__ __forceinline__ void write_bounds(const Operand& operand, std::int64_t row, const RowSums& sums) {
  const float norm = float_up(sqrt(sums.squared > sums.rounded ? sums.squared : sums.rounded) * kRoundUp);
  const float residual = float_up(sqrt(sums.residual) * kRoundUp);
  operand.squared[row] = static_cast<float>(sums.squared);
  operand.norm[row] = norm;
  operand.residual[row] = residual;
  atomic_max_float(&operand.tile_norm[row / kTileRows], norm);
  atomic_max_float(&operand.tile_residual[row / kTileRows], residual);
  atomic_max_float(operand.largest_norm, norm);
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

__device__ __forceinline__ double centred(const float* row, const float* center, int column, int dim) {
  return column < dim ? static_cast<double>(row[column]) - static_cast<double>(center[column]) : 0.0;
}

// Two neighbouring columns, in one access where the rows allow it: host memory is read over the bus.
__device__ __forceinline__ void centred_pair(const float* row, const float* center, int column, int dim, bool paired,
                                             double& first, double& second) {
  if (paired && column < dim) {
    const float2 x = *reinterpret_cast<const float2*>(row + column);
    first = static_cast<double>(x.x) - static_cast<double>(center[column]);
    second = static_cast<double>(x.y) - static_cast<double>(center[column + 1]);
  } else {
    first = centred(row, center, column, dim);
    second = centred(row, center, column + 1, dim);
  }
}

// Whether every row starts at a multiple of 8 bytes and no pair of columns is cut.
__device__ __forceinline__ bool rows_in_pairs(const float* rows, std::int64_t stride, int dim) {
  return dim % 2 == 0 && stride % 2 == 0 && reinterpret_cast<std::uintptr_t>(rows) % 8 == 0;
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
    largest = fmaxf(largest, fabsf(static_cast<float>(centred(row, center, column, dim))));
  }
  return warp_max(largest) / 127.0f;
}

// Two neighbouring columns of a block, rounded and written.
template <bool kInt8>
__device__ __forceinline__ void write_pair(unsigned char* block, int tile_row, int column, float scale, double x0,
                                           double x1, RowSums& sums) {
  if constexpr (kInt8) {
    double y0, y1;
    const std::uint32_t pair = int8_of(x0, scale, y0) | int8_of(x1, scale, y1) << 8;
    *reinterpret_cast<std::uint16_t*>(block + tile_row * kTileDepth + column) = static_cast<std::uint16_t>(pair);
    sums.add(x0, y0);
    sums.add(x1, y1);
  } else {
    const std::uint16_t h0 = to_bfloat16(static_cast<float>(x0));
    const std::uint16_t h1 = to_bfloat16(static_cast<float>(x1));
    const std::uint32_t pair = h0 | static_cast<std::uint32_t>(h1) << 16;
    *reinterpret_cast<std::uint32_t*>(block + swizzled_offset(tile_row, column)) = pair;
    sums.add(x0, from_bfloat16(h0));
    sums.add(x1, from_bfloat16(h1));
  }
}

// One warp per row. A lane takes two neighbouring columns of every block, so that a warp writes a block's row whole.
template <bool kInt8>
__global__ void __launch_bounds__(kPrepareWarps* kWarp)
    prepare_kernel(const float* rows, std::int64_t count, std::int64_t stride, const float* center, Operand operand,
                   std::int64_t first, std::int64_t last) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kPrepareWarps + warp_id();
  const std::int64_t row = first + index;
  if (row >= last) return;
  if (index >= count) {
    write_padding<kInt8>(operand, row);
    return;
  }
  const float* source = rows + index * stride;
  const int dim = operand.dim;
  const bool paired = rows_in_pairs(rows, stride, dim);
  const float scale = kInt8 ? scale_of(source, center, dim) : 0.0f;
  unsigned char* block = tile_values(operand, row / kTileRows);
  RowSums sums;
  for (int b = 0; b < operand.depth_blocks; ++b, block += kInt8 ? kInt8BlockBytes : kBlockBytes) {
    const int column = lane_id() * 2;
    double x0, x1;
    centred_pair(source, center, b * kTileDepth + column, dim, paired, x0, x1);
    write_pair<kInt8>(block, static_cast<int>(row % kTileRows), column, scale, x0, x1, sums);
  }
  sums.squared = warp_sum(sums.squared);
  sums.rounded = warp_sum(sums.rounded);
  sums.residual = warp_sum(sums.residual);
  if (lane_id() != 0) return;
  if (kInt8) operand.scale[row] = scale;
  write_bounds(operand, row, sums);
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
  const std::size_t tiles = static_cast<std::size_t>(operand.tiles);
  check(cudaMemsetAsync(operand.tile_norm, 0, tiles * sizeof(float), stream), "operand_begin");
  check(cudaMemsetAsync(operand.tile_residual, 0, tiles * sizeof(float), stream), "operand_begin");
  check(cudaMemsetAsync(operand.largest_norm, 0, sizeof(float), stream), "operand_begin");
}

void prepare_rows(const float* rows, std::int64_t count, std::int64_t stride, const float* center,
                  const Operand& operand, std::int64_t first, Stream stream) {
  const bool whole = first + count == operand.rows;  // then the padding of the last tile is written too
  const std::int64_t last = whole ? static_cast<std::int64_t>(operand.tiles) * kTileRows : first + count;
  const dim3 grid(blocks_for(last - first, kPrepareWarps));
  launch("prepare_rows", operand.int8 ? prepare_kernel<true> : prepare_kernel<false>, grid, kPrepareWarps * kWarp, 0,
         stream, false, rows, count, stride, center, operand, first, last);
}

}  // namespace mmad::cuda
