// AVX-512: 12 rows x 32 columns (two panels), 24 accumulators over the whole depth. With VNNI the multiplication of
// pairs, or of four bytes, and the addition are one instruction.
#include "cpu/tile.hpp"

#if defined(__x86_64__)

// GCC 12 takes the "undefined" operands inside its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#include <cstring>

#define MMAD_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define MMAD_AVX512_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))

namespace mmad {
namespace {

// The loops over the rows of a tile are unrolled everywhere, or the compiler keeps the accumulators in memory.
constexpr int kRows = 12;
constexpr int kColumns = 2 * kPanelWidth;

MMAD_AVX512 void multiply_float(const void* a, std::int64_t row_bytes, const void* b, std::int64_t panel_bytes,
                                std::int64_t k, void* out) {
  __m512 sum[kRows][2];
#pragma GCC unroll 12
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
  const char* rows = static_cast<const char*>(a);
  const char* first = static_cast<const char*>(b);
  const char* second = first + panel_bytes;
  for (std::int64_t i = 0; i < k; ++i, first += 64, second += 64) {
    const __m512 left = _mm512_loadu_ps(first), right = _mm512_loadu_ps(second);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512 x = _mm512_set1_ps(reinterpret_cast<const float*>(rows + r * row_bytes)[i]);
      sum[r][0] = _mm512_fmadd_ps(x, left, sum[r][0]);
      sum[r][1] = _mm512_fmadd_ps(x, right, sum[r][1]);
    }
  }
  float* to = static_cast<float*>(out);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r, to += kColumns) {
    _mm512_storeu_ps(to, sum[r][0]);
    _mm512_storeu_ps(to + kPanelWidth, sum[r][1]);
  }
}

MMAD_AVX512 inline __m512i broadcast_values(const char* at) {
  std::int32_t values;
  std::memcpy(&values, at, sizeof values);
  return _mm512_set1_epi32(values);
}

// Without VNNI bytes are added in pairs in 16 bits first, which rows of signed7 fit.
template <bool kBytes>
MMAD_AVX512 inline __m512i add_products(__m512i sum, __m512i columns, __m512i row) {
  if (!kBytes) return _mm512_add_epi32(sum, _mm512_madd_epi16(row, columns));
  const __m512i pairs = _mm512_maddubs_epi16(columns, row);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
template <bool kBytes>
MMAD_AVX512_VNNI inline __m512i add_products_vnni(__m512i sum, __m512i columns, __m512i row) {
  return kBytes ? _mm512_dpbusd_epi32(sum, columns, row) : _mm512_dpwssd_epi32(sum, row, columns);
}

MMAD_AVX512 inline void store_sums(const __m512i (&sum)[kRows][2], void* out) {
  auto* to = static_cast<std::int32_t*>(out);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r, to += kColumns) {
    _mm512_storeu_si512(to, sum[r][0]);
    _mm512_storeu_si512(to + kPanelWidth, sum[r][1]);
  }
}

// The two loops differ in one function, but a loop has one target: with VNNI in it, it must not run elsewhere.
template <bool kBytes>
MMAD_AVX512 void multiply_fixed(const void* a, std::int64_t row_bytes, const void* b, std::int64_t panel_bytes,
                                std::int64_t k, void* out) {
  __m512i sum[kRows][2];
#pragma GCC unroll 12
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_si512();
  const char* rows = static_cast<const char*>(a);
  const char* first = static_cast<const char*>(b);
  for (std::int64_t i = 0; i < k * (kBytes ? 1 : 2); i += 4, first += 64) {
    const __m512i left = _mm512_loadu_si512(first), right = _mm512_loadu_si512(first + panel_bytes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = broadcast_values(rows + r * row_bytes + i);
      sum[r][0] = add_products<kBytes>(sum[r][0], left, x);
      sum[r][1] = add_products<kBytes>(sum[r][1], right, x);
    }
  }
  store_sums(sum, out);
}

template <bool kBytes>
MMAD_AVX512_VNNI void multiply_fixed_vnni(const void* a, std::int64_t row_bytes, const void* b,
                                          std::int64_t panel_bytes, std::int64_t k, void* out) {
  __m512i sum[kRows][2];
#pragma GCC unroll 12
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_si512();
  const char* rows = static_cast<const char*>(a);
  const char* first = static_cast<const char*>(b);
  for (std::int64_t i = 0; i < k * (kBytes ? 1 : 2); i += 4, first += 64) {
    const __m512i left = _mm512_loadu_si512(first), right = _mm512_loadu_si512(first + panel_bytes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = broadcast_values(rows + r * row_bytes + i);
      sum[r][0] = add_products_vnni<kBytes>(sum[r][0], left, x);
      sum[r][1] = add_products_vnni<kBytes>(sum[r][1], right, x);
    }
  }
  store_sums(sum, out);
}

MMAD_AVX512 inline __m512 load_sums(const float* sums, std::int32_t) { return _mm512_loadu_ps(sums); }
MMAD_AVX512 inline __m512 load_sums(const std::int32_t* sums, std::int32_t offset) {
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(sums), _mm512_set1_epi32(offset)));
}

void nothing() {}

}  // namespace

// Shared with AMX, whose tiles are as wide.
template <typename T>
MMAD_AVX512 bool screen_avx512(const void* accumulators, int rows, const RowTerms* row_terms,
                               const ColumnTerms& columns, float* lower, std::uint32_t* passed) {
  std::uint32_t any = 0;
  std::memset(passed, 0, static_cast<std::size_t>(rows) * sizeof *passed);
  for (int half = 0; half < 2; ++half) {
    const int at = kPanelWidth * half;
    const __m512 base = _mm512_loadu_ps(columns.base + at), scale = _mm512_loadu_ps(columns.scale + at);
    const __m512 norm = _mm512_loadu_ps(columns.norm + at), residual = _mm512_loadu_ps(columns.residual + at);
    for (int r = 0; r < rows; ++r) {
      const RowTerms& row = row_terms[r];
      const T* sums = static_cast<const T*>(accumulators) + r * kColumns + at;
      __m512 low = _mm512_fnmadd_ps(_mm512_set1_ps(row.norm_factor), norm, base);
      low = _mm512_fnmadd_ps(_mm512_set1_ps(row.residual_factor), residual, low);
      low = _mm512_fnmadd_ps(_mm512_set1_ps(row.two_scale), _mm512_mul_ps(scale, load_sums(sums, row.offset)), low);
      _mm512_storeu_ps(lower + r * kColumns + at, low);
      const auto keep = static_cast<std::uint32_t>(_mm512_cmp_ps_mask(low, _mm512_set1_ps(row.threshold), _CMP_LE_OQ));
      passed[r] |= keep << at;
      any |= keep;
    }
  }
  return any != 0;
}

template bool screen_avx512<float>(const void*, int, const RowTerms*, const ColumnTerms&, float*, std::uint32_t*);
template bool screen_avx512<std::int32_t>(const void*, int, const RowTerms*, const ColumnTerms&, float*,
                                          std::uint32_t*);

TileKernel avx512_tile_kernel(Format format, bool vnni) {
  const auto sixteen = vnni ? multiply_fixed_vnni<false> : multiply_fixed<false>;
  const auto eight = vnni ? multiply_fixed_vnni<true> : multiply_fixed<true>;
  switch (format) {
    case Format::float32: return {kRows, 2, multiply_float, screen_avx512<float>, nothing, nothing};
    case Format::fixed16: return {kRows, 2, sixteen, screen_avx512<std::int32_t>, nothing, nothing};
    case Format::fixed8: return {kRows, 2, eight, screen_avx512<std::int32_t>, nothing, nothing};
    default: break;
  }
  return {};
}

}  // namespace mmad

#else

namespace mmad {
TileKernel avx512_tile_kernel(Format, bool) { return {}; }
}  // namespace mmad

#endif
