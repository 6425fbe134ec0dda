// Four columns at a time, in one vector of sums each, which are added across at the end: the row is read once for all
// four, and so many chains of additions are under way that none is waited for.
#include "cpu/pairs.hpp"

#include <algorithm>

#include "mmad/operand.hpp"

#if defined(__x86_64__)
// GCC 12 takes the "undefined" operands inside its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define MMAD_AVX2 __attribute__((target("avx2,fma")))
#define MMAD_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#define MMAD_AVX512_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#endif

namespace mmad {
namespace {

constexpr int kColumns = 4;

void pairs_generic(const std::int8_t* row, const std::uint8_t* const* columns, int count, std::int64_t depth,
                   std::int32_t* sums) {
  for (int i = 0; i < count; ++i) {
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < depth; ++k) sum += std::int32_t{row[k]} * columns[i][k];
    sums[i] = sum;
  }
}

#if defined(__x86_64__)

MMAD_AVX2 inline void add_across(__m256i a, __m256i b, __m256i c, __m256i d, int count, std::int32_t* sums) {
  const __m256i all = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  alignas(16) std::int32_t four[kColumns];
  _mm_store_si128(reinterpret_cast<__m128i*>(four),
                  _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
  std::copy_n(four, count, sums);
}

MMAD_AVX2 void pairs_avx2(const std::int8_t* row, const std::uint8_t* const* columns, int count, std::int64_t depth,
                          std::int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int from = 0; from < count; from += kColumns) {
    const int n = std::min(kColumns, count - from);
    __m256i sum[kColumns];
#pragma GCC unroll 4
    for (auto& one : sum) one = _mm256_setzero_si256();
    const std::uint8_t* at[kColumns];
    for (int c = 0; c < kColumns; ++c) at[c] = columns[from + std::min(c, n - 1)];
    for (std::int64_t k = 0; k < depth; k += 32) {
      const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + k));
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) {
        const __m256i column = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at[c] + k));
        sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(_mm256_maddubs_epi16(column, x), ones));
      }
    }
    add_across(sum[0], sum[1], sum[2], sum[3], n, sums + from);
  }
}

MMAD_AVX512 inline __m256i halves(__m512i sum) {
  return _mm256_add_epi32(_mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1));
}

MMAD_AVX512_VNNI void pairs_vnni(const std::int8_t* row, const std::uint8_t* const* columns, int count,
                                 std::int64_t depth, std::int32_t* sums) {
  for (int from = 0; from < count; from += kColumns) {
    const int n = std::min(kColumns, count - from);
    __m512i sum[kColumns];
#pragma GCC unroll 4
    for (auto& one : sum) one = _mm512_setzero_si512();
    const std::uint8_t* at[kColumns];
    for (int c = 0; c < kColumns; ++c) at[c] = columns[from + std::min(c, n - 1)];
    for (std::int64_t k = 0; k < depth; k += 64) {
      const __m512i x = _mm512_loadu_si512(row + k);
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) sum[c] = _mm512_dpbusd_epi32(sum[c], _mm512_loadu_si512(at[c] + k), x);
    }
    add_across(halves(sum[0]), halves(sum[1]), halves(sum[2]), halves(sum[3]), n, sums + from);
  }
}

#endif

}  // namespace

PairKernel pair_kernel(Isa isa) {
#if defined(__x86_64__)
  if (isa >= Isa::avx512 && has_avx512_vnni()) return pairs_vnni;
  if (isa >= Isa::avx2 && row_format(Format::fixed8, isa) == Format::signed7) return pairs_avx2;
#endif
  return pairs_generic;
}

}  // namespace mmad
