// AMX: 32 rows x 32 columns in eight tile registers: four accumulators, two tiles of rows, two of columns.
//
// A tile of columns is 16 rows (pairs of k) of 16 columns x 2 values of bfloat16, or x 4 bytes: exactly a panel's layout,
// read with a stride of 64 bytes. The bfloat16 unit takes subnormal numbers as zero; rows are scaled to a norm near one, so what that loses is far
// below the slack of the bound (operand.hpp).
#include "cpu/tile.hpp"

#if defined(__x86_64__)

// GCC 12 takes the "undefined" operands inside its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define MMAD_AMX __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512vl,avx512dq")))

namespace mmad {

template <typename T>
bool screen_avx512(const void*, int, const RowTerms*, const ColumnTerms&, float*, std::uint32_t*);

namespace {

constexpr int kTile = 16;
constexpr int kColumns = 2 * kPanelWidth;
constexpr int kStep = 64;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_a_row[16] = {};
  std::uint8_t rows[16] = {};
};

MMAD_AMX void begin() {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.bytes_a_row[t] = 64;
    config.rows[t] = kTile;
  }
  // Not _tile_loadconfig(): GCC 12 (bug in amxtileintrin.h) tells the optimiser that only 8 of the 64 bytes are read, and
  // the stores above are dropped.
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

MMAD_AMX void end() { _tile_release(); }

// One pass over the depth; `kStep` bytes of a row, one tile's, and as many of each column at a time.
#define MMAD_AMX_PRODUCT(multiply)                               \
  const char* rows = static_cast<const char*>(a);                \
  const char* columns = static_cast<const char*>(b);             \
  _tile_zero(0);                                                 \
  _tile_zero(1);                                                 \
  _tile_zero(2);                                                 \
  _tile_zero(3);                                                 \
  for (std::int64_t i = 0; i < bytes; i += kStep) {              \
    _tile_loadd(4, rows + i, row_bytes);                         \
    _tile_loadd(5, rows + kTile * row_bytes + i, row_bytes);     \
    _tile_loadd(6, columns + i * kPanelWidth, 64);               \
    _tile_loadd(7, columns + panel_bytes + i * kPanelWidth, 64); \
    multiply(0, 4, 6);                                           \
    multiply(1, 4, 7);                                           \
    multiply(2, 5, 6);                                           \
    multiply(3, 5, 7);                                           \
  }                                                              \
  char* to = static_cast<char*>(out);                            \
  _tile_stored(0, to, kColumns * 4);                             \
  _tile_stored(1, to + kPanelWidth * 4, kColumns * 4);           \
  _tile_stored(2, to + kTile * kColumns * 4, kColumns * 4);      \
  _tile_stored(3, to + (kTile * kColumns + kPanelWidth) * 4, kColumns * 4)

MMAD_AMX void multiply_bfloat16(const void* a, std::int64_t row_bytes, const void* b, std::int64_t panel_bytes,
                                std::int64_t k, void* out) {
  const std::int64_t bytes = 2 * k;
  MMAD_AMX_PRODUCT(_tile_dpbf16ps);
}

MMAD_AMX void multiply_bytes(const void* a, std::int64_t row_bytes, const void* b, std::int64_t panel_bytes,
                             std::int64_t k, void* out) {
  const std::int64_t bytes = k;
  MMAD_AMX_PRODUCT(_tile_dpbsud);
}

}  // namespace

TileKernel amx_tile_kernel(Format format) {
  switch (format) {
    case Format::bfloat16: return {2 * kTile, 2, multiply_bfloat16, screen_avx512<float>, begin, end};
    case Format::fixed8: return {2 * kTile, 2, multiply_bytes, screen_avx512<std::int32_t>, begin, end};
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
