// AVX2: 6 rows x 16 columns, twelve accumulators in registers over the whole depth.
//
// For 16-bit fixed point vpmaddwd multiplies and adds sixteen pairs per instruction, twice what a float32 FMA does, and
// issues as often; the vpaddd behind it goes to other ports. For bytes vpmaddubsw multiplies and adds 32 values in pairs,
// in 16 bits (rows of signed7 fit them), and vpmaddwd with ones widens. The sums are exact (operand.hpp).
#include "cpu/tile.hpp"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#define MMAD_AVX2 __attribute__((target("avx2,fma")))

namespace mmad {
namespace {

// The loops over the rows of a tile are unrolled everywhere, or the compiler keeps the accumulators in memory.
constexpr int kRows = 6;

MMAD_AVX2 void multiply_float(const void* a, std::int64_t row_bytes, const void* b, std::int64_t, std::int64_t k,
                              void* out) {
  __m256 sum[kRows][2];
#pragma GCC unroll 6
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_ps();
  const char* rows = static_cast<const char*>(a);
  const float* panel = static_cast<const float*>(b);
#pragma GCC unroll 2
  for (std::int64_t i = 0; i < k; ++i, panel += kPanelWidth) {
    const __m256 left = _mm256_loadu_ps(panel), right = _mm256_loadu_ps(panel + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 x = _mm256_broadcast_ss(reinterpret_cast<const float*>(rows + r * row_bytes) + i);
      sum[r][0] = _mm256_fmadd_ps(x, left, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(x, right, sum[r][1]);
    }
  }
  float* to = static_cast<float*>(out);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r, to += kPanelWidth) {
    _mm256_storeu_ps(to, sum[r][0]);
    _mm256_storeu_ps(to + 8, sum[r][1]);
  }
}

template <bool kBytes>
MMAD_AVX2 inline __m256i products(__m256i columns, __m256i row) {
  if (kBytes) return _mm256_madd_epi16(_mm256_maddubs_epi16(columns, row), _mm256_set1_epi16(1));
  return _mm256_madd_epi16(row, columns);
}

template <bool kBytes>
MMAD_AVX2 void multiply_fixed(const void* a, std::int64_t row_bytes, const void* b, std::int64_t, std::int64_t k,
                              void* out) {
  __m256i sum[kRows][2];
#pragma GCC unroll 6
  for (auto& row : sum) row[0] = row[1] = _mm256_setzero_si256();
  const char* rows = static_cast<const char*>(a);
  const auto* panel = static_cast<const __m256i*>(b);
#pragma GCC unroll 2
  for (std::int64_t i = 0; i < k * (kBytes ? 1 : 2); i += 4, panel += 2) {
    const __m256i left = _mm256_loadu_si256(panel), right = _mm256_loadu_si256(panel + 1);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      std::int32_t values;
      std::memcpy(&values, rows + r * row_bytes + i, sizeof values);
      const __m256i x = _mm256_set1_epi32(values);
      sum[r][0] = _mm256_add_epi32(sum[r][0], products<kBytes>(left, x));
      sum[r][1] = _mm256_add_epi32(sum[r][1], products<kBytes>(right, x));
    }
  }
  auto* to = static_cast<__m256i*>(out);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r, to += 2) {
    _mm256_storeu_si256(to, sum[r][0]);
    _mm256_storeu_si256(to + 1, sum[r][1]);
  }
}

MMAD_AVX2 inline __m256 load_sums(const float* sums, std::int32_t) { return _mm256_loadu_ps(sums); }
MMAD_AVX2 inline __m256 load_sums(const std::int32_t* sums, std::int32_t offset) {
  const __m256i whole = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(whole, _mm256_set1_epi32(offset)));
}

template <typename T>
MMAD_AVX2 bool screen(const void* accumulators, int rows, const RowTerms* row_terms, const ColumnTerms& columns,
                      float* lower, std::uint32_t* passed) {
  std::uint32_t any = 0;
  std::memset(passed, 0, static_cast<std::size_t>(rows) * sizeof *passed);
  for (int half = 0; half < 2; ++half) {
    const __m256 base = _mm256_loadu_ps(columns.base + 8 * half);
    const __m256 scale = _mm256_loadu_ps(columns.scale + 8 * half);
    const __m256 norm = _mm256_loadu_ps(columns.norm + 8 * half);
    const __m256 residual = _mm256_loadu_ps(columns.residual + 8 * half);
    for (int r = 0; r < rows; ++r) {
      const RowTerms& row = row_terms[r];
      const T* sums = static_cast<const T*>(accumulators) + r * kPanelWidth + 8 * half;
      __m256 low = _mm256_fnmadd_ps(_mm256_set1_ps(row.norm_factor), norm, base);
      low = _mm256_fnmadd_ps(_mm256_set1_ps(row.residual_factor), residual, low);
      low = _mm256_fnmadd_ps(_mm256_set1_ps(row.two_scale), _mm256_mul_ps(scale, load_sums(sums, row.offset)), low);
      _mm256_storeu_ps(lower + r * kPanelWidth + 8 * half, low);
      const __m256 keep = _mm256_cmp_ps(low, _mm256_set1_ps(row.threshold), _CMP_LE_OQ);
      const auto mask = static_cast<std::uint32_t>(_mm256_movemask_ps(keep)) << (8 * half);
      passed[r] |= mask;
      any |= mask;
    }
  }
  return any != 0;
}

void nothing() {}

}  // namespace

TileKernel avx2_tile_kernel(Format format) {
  switch (format) {
    case Format::float32: return {kRows, 1, multiply_float, screen<float>, nothing, nothing};
    case Format::fixed16: return {kRows, 1, multiply_fixed<false>, screen<std::int32_t>, nothing, nothing};
    case Format::fixed8: return {kRows, 1, multiply_fixed<true>, screen<std::int32_t>, nothing, nothing};
    default: break;
  }
  return {};
}

}  // namespace mmad

#else

namespace mmad {
TileKernel avx2_tile_kernel(Format) { return {}; }
}  // namespace mmad

#endif
