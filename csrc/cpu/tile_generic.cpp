// Portable tile kernels: plain loops for processors with none of the wide instruction sets.
#include <cmath>

#include "cpu/tile.hpp"

namespace mmad {
namespace {

constexpr int kRows = 4;

void multiply_float(const void* a, std::int64_t row_bytes, const void* b, std::int64_t, std::int64_t k, void* out) {
  float sum[kRows][kPanelWidth] = {};
  const float* panel = static_cast<const float*>(b);
  for (std::int64_t i = 0; i < k; ++i) {
    for (int r = 0; r < kRows; ++r) {
      const float x = reinterpret_cast<const float*>(static_cast<const char*>(a) + r * row_bytes)[i];
      for (int j = 0; j < kPanelWidth; ++j) sum[r][j] += x * panel[i * kPanelWidth + j];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kPanelWidth; ++j) static_cast<float*>(out)[r * kPanelWidth + j] = sum[r][j];
  }
}

// `kGroup` values of a column lie together.
template <typename Row, typename Column, int kGroup>
void multiply_fixed(const void* a, std::int64_t row_bytes, const void* b, std::int64_t, std::int64_t k, void* out) {
  std::int32_t sum[kRows][kPanelWidth] = {};
  const auto* panel = static_cast<const Column*>(b);
  for (std::int64_t i = 0; i < k; i += kGroup) {
    for (int r = 0; r < kRows; ++r) {
      const auto* x = reinterpret_cast<const Row*>(static_cast<const char*>(a) + r * row_bytes) + i;
      for (int j = 0; j < kPanelWidth; ++j) {
        const Column* group = panel + i * kPanelWidth + kGroup * j;
        for (int g = 0; g < kGroup; ++g) sum[r][j] += std::int32_t{x[g]} * group[g];
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kPanelWidth; ++j) static_cast<std::int32_t*>(out)[r * kPanelWidth + j] = sum[r][j];
  }
}

float product(float sum, std::int32_t) { return sum; }
float product(std::int32_t sum, std::int32_t offset) { return static_cast<float>(sum - offset); }

template <typename T>
bool screen(const void* accumulators, int rows, const RowTerms* row_terms, const ColumnTerms& columns, float* lower,
            std::uint32_t* passed) {
  bool any = false;
  for (int r = 0; r < rows; ++r) {
    const RowTerms& row = row_terms[r];
    const T* sum = static_cast<const T*>(accumulators) + r * kPanelWidth;
    float* low = lower + r * kPanelWidth;
    std::uint32_t mask = 0;
    for (int j = 0; j < kPanelWidth; ++j) {
      low[j] = columns.base[j] - row.two_scale * (columns.scale[j] * product(sum[j], row.offset)) -
               row.norm_factor * columns.norm[j] - row.residual_factor * columns.residual[j];
      mask |= static_cast<std::uint32_t>(low[j] <= row.threshold) << j;
    }
    passed[r] = mask;
    any |= mask != 0;
  }
  return any;
}

void nothing() {}

}  // namespace

TileKernel generic_tile_kernel(Format format) {
  switch (format) {
    case Format::float32: return {kRows, 1, multiply_float, screen<float>, nothing, nothing};
    case Format::fixed16:
      return {kRows, 1, multiply_fixed<std::int16_t, std::int16_t, 2>, screen<std::int32_t>, nothing, nothing};
    case Format::fixed8:
      return {kRows, 1, multiply_fixed<std::int8_t, std::uint8_t, 4>, screen<std::int32_t>, nothing, nothing};
    default: break;  // bfloat16 only where a unit multiplies it; the others are formats of rows
  }
  return {};
}

TileKernel tile_kernel(Format format, Isa isa) {
  TileKernel kernel{};
  if (isa >= Isa::amx) kernel = amx_tile_kernel(format);
  if (kernel.multiply == nullptr && isa >= Isa::avx512) kernel = avx512_tile_kernel(format, has_avx512_vnni());
  if (kernel.multiply == nullptr && isa >= Isa::avx2) kernel = avx2_tile_kernel(format);
  if (kernel.multiply == nullptr) kernel = generic_tile_kernel(format);
  return kernel;
}

}  // namespace mmad
