// Register-tile kernels: the inner products of a few rows with a few panels of columns, and the screening of the result.
//
// Layouts are the same for every instruction set, so an operand packed once serves them all:
//   rows   row-major, `k` values per row (zero-padded to a multiple of kDepthStep);
//   panel  kPanelWidth columns interleaved: [k][16] for float32, [k / 2][16][2] for 16-bit values, [k / 4][16][4] for
//          bytes.
//
// Byte units multiply unsigned values with signed ones: columns hold v + 128, and what that adds to the sums of a row,
// 128 times the sum of its values, is taken away before the sums are used (RowTerms::offset).
#pragma once

#include <cstdint>

#include "mmad/cpu_features.hpp"
#include "mmad/operand.hpp"

namespace mmad {

constexpr int kMaxTileRows = 32;
constexpr int kMaxTileColumns = 32;

// What the screening of one row needs, see operand.hpp for the bound it evaluates.
struct RowTerms {
  float two_scale;        // 2 s_q
  float norm_factor;      // 2 gamma N_q, or 2 (rho_q + gamma N_q)
  float residual_factor;  // 2 a, or 2 N_q
  float threshold;        // keep columns whose lower bound does not exceed this
  std::int32_t offset;    // what integer sums are too large by
};

// Numbers that the screening of the columns needs, one value per column.
struct ColumnTerms {
  const float* base;      // |m^|^2 - slack, +infinity for padding
  const float* scale;     // s_m
  const float* norm;      // N_m
  const float* residual;  // rho_m
};

struct TileKernel {
  int rows;    // rows of a tile
  int panels;  // panels of a tile; its columns are panels * kPanelWidth
  // Accumulators of the tile, row-major, int32 for fixed-point formats and float otherwise.
  // `row_bytes` and `panel_bytes` are the distances from one row, one panel, to the next.
  void (*multiply)(const void* a, std::int64_t row_bytes, const void* b, std::int64_t panel_bytes, std::int64_t k,
                   void* accumulators);
  // lower[r][j] = base_j - 2 s_q s_j (acc - offset) - norm_factor N_j - residual_factor rho_j, and a bit for each column that
  // passes. Returns whether any does; lower is written for the rows that have one.
  bool (*screen)(const void* accumulators, int rows, const RowTerms* row_terms, const ColumnTerms& columns,
                 float* lower, std::uint32_t* passed);
  // Called by each thread around its products (AMX configures its tiles here).
  void (*begin)();
  void (*end)();
};

// State around a thread's products.
class TileSession {
 public:
  explicit TileSession(const TileKernel& kernel) : kernel_(kernel) { kernel_.begin(); }
  ~TileSession() { kernel_.end(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;

 private:
  const TileKernel& kernel_;
};

// The kernel for a format of the packed operand; the other side has row_format().
TileKernel tile_kernel(Format format, Isa isa);

// The tables of the instruction sets; a null multiply means that the set has nothing better than the one below it.
TileKernel generic_tile_kernel(Format format);
TileKernel avx2_tile_kernel(Format format);
TileKernel avx512_tile_kernel(Format format, bool vnni);
TileKernel amx_tile_kernel(Format format);

}  // namespace mmad
