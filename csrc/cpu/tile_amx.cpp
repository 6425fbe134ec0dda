// AMX: 32 rows x 32 columns of bfloat16 in eight tile registers: four accumulators, two tiles of rows, two of columns.
//
// A tile of columns is 16 rows (pairs of k) of 16 columns x 2 values: exactly a panel's layout, read with a stride of
// 64 bytes. The unit takes subnormal numbers as zero; rows are scaled to a norm near one, so what that loses is far
// below the slack of the bound (operand.hpp).
#include "cpu/tile.hpp"

#if defined(__x86_64__)

// GCC 12 takes the "undefined" operands inside its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define MMAD_AMX __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512vl,avx512dq")))

namespace mmad {

template <typename T>
bool screen_avx512(const void*, int, const RowTerms*, const ColumnTerms&, float*, std::uint32_t*);

namespace {

constexpr int kTile = 16;
constexpr int kColumns = 2 * kPanelWidth;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_a_row[16] = {};
  std::uint8_t rows[16] = {};
};

// Bytes expanded to bfloat16 (exact: eight bits of integer fit the significand); kept while the same panels are used.
// Plain pointers: registering a thread's destructors may fail where memory runs out, and ends the process then.
thread_local std::uint16_t* expanded = nullptr;
thread_local std::int64_t expanded_size = 0;
thread_local const void* expanded_from = nullptr;

MMAD_AMX void begin() {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.bytes_a_row[t] = 64;
    config.rows[t] = kTile;
  }
  // Not _tile_loadconfig(): GCC 12 (bug in amxtileintrin.h) tells the optimiser that only 8 of the 64 bytes are read, and
  // the stores above are dropped.
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  expanded_from = nullptr;
}

MMAD_AMX void end() {
  _tile_release();
  delete[] expanded;
  expanded = nullptr;
  expanded_size = 0;
}

MMAD_AMX void multiply_bfloat16(const void* a, std::int64_t row_bytes, const void* b, std::int64_t panel_bytes,
                                std::int64_t k, void* out) {
  const char* rows = static_cast<const char*>(a);
  const char* columns = static_cast<const char*>(b);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t i = 0; i < k; i += kDepthStep) {
    _tile_loadd(4, rows + i * 2, row_bytes);
    _tile_loadd(5, rows + kTile * row_bytes + i * 2, row_bytes);
    _tile_loadd(6, columns + i * 32, 64);
    _tile_loadd(7, columns + panel_bytes + i * 32, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  float* to = static_cast<float*>(out);
  _tile_stored(0, to, kColumns * 4);
  _tile_stored(1, to + kPanelWidth, kColumns * 4);
  _tile_stored(2, to + kTile * kColumns, kColumns * 4);
  _tile_stored(3, to + kTile * kColumns + kPanelWidth, kColumns * 4);
}

MMAD_AMX void expand(const void* panels, std::int64_t values) {
  if (expanded_size < values) {
    delete[] expanded;
    expanded = nullptr;
    expanded_size = 0;
    expanded = new std::uint16_t[static_cast<std::size_t>(values)];
    expanded_size = values;
  }
  for (std::int64_t i = 0; i < values; i += 16) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(panels) + i));
    const __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
    const __m256i upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(wide), 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(expanded + i), upper);
  }
}

MMAD_AMX void multiply_fixed8(const void* a, std::int64_t row_bytes, const void* b, std::int64_t panel_bytes,
                              std::int64_t k, void* out) {
  if (expanded_from != b) {
    expand(b, 2 * panel_bytes);
    expanded_from = b;
    __asm__ volatile("" : : : "memory");  // _tile_loadd() does not say that it reads memory: finish the stores first
  }
  multiply_bfloat16(a, row_bytes, expanded, 2 * panel_bytes, k, out);
}

}  // namespace

TileKernel amx_tile_kernel(Format format) {
  switch (format) {
    case Format::bfloat16: return {2 * kTile, 2, multiply_bfloat16, screen_avx512<float>, begin, end};
    case Format::fixed8: return {2 * kTile, 2, multiply_fixed8, screen_avx512<float>, begin, end};
    default: break;
  }
  return {};
}

}  // namespace mmad

#else

namespace mmad {
TileKernel amx_tile_kernel(Format) { return {}; }
}  // namespace mmad

#endif
