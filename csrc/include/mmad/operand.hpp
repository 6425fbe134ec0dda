// Rows rounded to a narrow format, with what is needed to bound every squared distance computed from them.
//
// Let x be a row minus a common centre (any centre cancels in a distance), x^ = s * v the rounded row that the matrix
// unit multiplies (v: int16, int8, bfloat16 or float32 values, s: one scale a row) and rho >= |x - x^|, N >= |x|, |x^|.
// By Cauchy-Schwarz, with gamma the relative error of the accumulation (0 for integers, which add exactly),
//
//   | <q, m> - fl<q^, m^> |  <=  rho_q N_m + N_q rho_m + gamma N_q N_m,
//
// so with e = 2 (rho_q + gamma N_q) N_m + 2 N_q rho_m + slack (N_q^2 + N_m^2) the true squared distance lies within
// |q|^2 + |m|^2 - 2 s_q s_m <v_q, v_m>  +-  e. The slack, kSlack = 32 u with u = 2^-24, covers the rounding of |q|^2
// and |m|^2 to float32 (3 u each, the subtraction of the centre included), of the expression itself (at most six
// operations on terms that do not exceed 2 (N_q^2 + N_m^2)), and of e.
#pragma once

#include <cstdint>
#include <vector>

#include "mmad/matrix.hpp"

namespace mmad {

constexpr int kPanelWidth = 16;
constexpr int kDepthStep = 32;  // rows are zero-padded to a multiple of this: one AMX tile of bfloat16 pairs
constexpr int kSpareRows = 32;  // readable rows behind the last one: kernels take whole tiles
constexpr float kSlack = 32.0f / (1 << 24);
constexpr float kTiny = 1e-36f;        // covers underflow in the float32 bounds
constexpr double kLargestNorm = 1e18;  // squares of larger norms would not fit float32

enum class Format {
  float32,
  fixed16,  // int16 with |v| <= 46340, so that int32 accumulators cannot overflow: |sum| <= |v_q| |v_m| < 2^31
  fixed8,   // int8 (a packed operand only; multiplied with fixed16 or bfloat16 rows)
  bfloat16,
};

int bytes_per_value(Format format);

// The format of the rows that a packed operand of this format is multiplied with.
Format row_format(Format packed, bool bfloat16_unit);

// gamma for inner products of `k` terms: k u / (1 - k u) for floating-point accumulation, 0 for integers.
float accumulation_error(Format rows, std::int64_t k);

// Per-row terms of the bound.
struct RowBounds {
  std::vector<float> scale;     // s
  std::vector<float> norm;      // N, rounded up
  std::vector<float> residual;  // rho, rounded up
  std::vector<float> squared;   // |x|^2, rounded to nearest
  std::vector<float> slack;     // kSlack N^2 and whatever else the row adds to the half-width of its intervals
};

// Rounded rows, row-major.
struct Rows {
  Format format = Format::float32;
  std::int64_t count = 0, dim = 0, depth = 0;  // depth: dim padded to kDepthStep
  std::vector<std::uint8_t> values;
  RowBounds bounds;

  std::int64_t row_bytes() const { return depth * bytes_per_value(format); }
  const std::uint8_t* row(std::int64_t i) const { return values.data() + i * row_bytes(); }
};

// Rounded rows packed in panels of kPanelWidth (tile.hpp), with room to append.
struct Panels {
  Format format = Format::float32;
  std::int64_t count = 0, dim = 0, depth = 0;
  std::vector<std::uint8_t> values;
  RowBounds bounds;         // padded to whole panel pairs
  std::vector<float> base;  // |m|^2 - slack; +infinity where there is no row yet

  std::int64_t panel_bytes() const { return depth * kPanelWidth * bytes_per_value(format); }
  const std::uint8_t* panel(std::int64_t p) const { return values.data() + p * panel_bytes(); }
  std::int64_t panel_count() const { return (count + kPanelWidth - 1) / kPanelWidth; }
  std::int64_t nbytes() const;

  void reserve(std::int64_t rows, std::int64_t dim, Format format);
  // Copies an already rounded row (same format) into the next column.
  void append(const Rows& rows, std::int64_t row);
};

// The centre that rows are shifted by before they are rounded: the mean of the middle half of a sample of the rows in
// every coordinate, so that a few rows of huge norm do not push all the others far from the origin.
std::vector<float> robust_center(Matrix<const float> rows);

// Rounds rows. Throws std::invalid_argument that names the first row which is not finite or longer than kLargestNorm.
Rows round_rows(Matrix<const float> rows, const float* center, Format format, int threads);
Panels pack_rows(Matrix<const float> rows, const float* center, Format format, int threads);

// Squared distance of two original rows from differences in float64: what decides between contenders.
double squared_distance(const float* a, const float* b, std::int64_t dim);

}  // namespace mmad
