// Rows rounded to a narrow format, with what is needed to bound every squared distance computed from them.
//
// Let x be a row minus a common centre (any centre cancels in a distance), x^ = s * v the rounded row that the matrix
// unit multiplies (v: int16, int8, bfloat16 or float32 values, s: one scale per row) and rho >= |x - x^|, N >= |x|,
// |x^|. Two bounds tell which pairs may be within L of each other. By the triangle inequality | |q - m| - |q^ - m^| | <=
// rho_q + rho_m, so with a = L + rho_q such a pair has
//
//   |q^|^2 + |m^|^2 - 2 <q^, m^>  <=  (a + rho_m)^2  =  a^2 + 2 a rho_m + rho_m^2.
//
// By Cauchy-Schwarz |<q, m> - <q^, m^>| <= rho_q N_m + N_q rho_m, so it has
//
//   |q|^2 + |m|^2 - 2 <q^, m^>  <=  L^2 + 2 rho_q N_m + 2 N_q rho_m.
//
// Either is a sum of terms of the row, terms of the column, and products of one of each, and what exceeds it is ruled out.
// The first is the better one where neighbours are closer than rows are long, often by far; a row takes the one that suits
// its limit (Level::set_limit). Columns have one square for both, |m^|^2: x - x^ is orthogonal to x^, so |m|^2 is not less
// (operand.cpp).
//
// The left side is computed. Its accumulation errs by gamma N_q N_m at most (0 for integers, which add exactly). The
// slack of each side, kSlack N^2 with kSlack = 32 u and u = 2^-24, covers the rounding of the squares to float32 (4 u N^2
// each, with the subtraction of the centre and the scale), and of the expression. Where a <= 1.01 (N_q + N_m), 2 a rho_m is
// at most 2.5 (N_q^2 + N_m^2), partial sums are at most 4.5 times that sum of squares, and all roundings together 24 u
// times it. A longer a holds every pair, and they pass by a margin of 2 %. rho_m^2 is part of the slack, on both sides
// alike.
//
// Extreme values. Squares of float32 numbers leave float32's range, so the whole problem is first scaled by a power of two
// (Frame::factor) that takes the longest of a sample of the rows to a norm in [2^32, 2^33). What follows is said of the
// scaled rows, and holds for any factor: the sample decides about speed alone.
// - Scaling. x - c is exact where it is subnormal, and its product with the factor is exact but for underflow, which
//   loses at most 2^-126 per value (subnormal results, flushed or not). Factors lie in [2^-28, 2^126]: they take the
//   smallest subnormal to 2^-23 at least where nothing is longer than 2^-86, and the longest accepted row to 2^33.
// - Long rows. A row with a norm above kScreenNorm = 2^56 (of a search, say, whose bank lies within 2^-24 of its centre
//   in comparison) is not multiplied at all: its values are zero, and its slack kNoScreen = 2^126 is above every
//   sum of the others' terms (squares are at most 2^112, a at most 2^64, 2 a rho at most 2^121), so nothing is ruled out
//   for it.
// - Short rows. Scales are at least kLeastScale = 2^-100, so s_m times an integer sum is not subnormal, and every other
//   product that underflows loses at most 2^-126, an inner product of k terms k 2^-126 of the scaled values. kTiny =
//   2^-100 in rho, N and the slack covers all of them up to k = 2^24. What a short row is rounded to (for all of
//   v = 0: nothing is left of it) is told by rho as for every row: its intervals are wide, not wrong.
//   Pairs within 2^-50 of each other pass the screen and are computed from differences.
// - No values at all (every row is the centre): the factor is 1, all bounds are kTiny, everything passes.
// - float32 and bfloat16: sums of k <= 2^24 products of norms up to 2^56 stay below 2^113. Integers: see Format.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mmad/bytes.hpp"
#include "mmad/cpu_features.hpp"
#include "mmad/matrix.hpp"

namespace mmad {

constexpr int kPanelWidth = 16;
constexpr int kDepthStep = 32;  // rows are zero-padded to a multiple of this: one AMX tile of bfloat16 pairs
constexpr int kByteStep = 64;   // the same for bytes
constexpr int kByteBias = 128;  // what the bytes of columns are stored with
constexpr int kSpareRows = 32;  // readable rows behind the last one: kernels take whole tiles
constexpr float kSlack = 32.0f / (1 << 24);
constexpr float kTiny = 0x1p-100f;        // covers underflow in the float32 bounds
constexpr float kLeastScale = 0x1p-100f;  // least scale of a rounded row
constexpr double kScreenNorm = 0x1p56;    // longer rows, after scaling, are not screened
constexpr float kNoScreen = 0x1p126f;     // the slack of such rows
constexpr double kLargestNorm = 1e18;     // squares of larger norms, and of differences, would not fit float32

enum class Format {
  float32,
  // int16 with |v| <= 46340 for the whole row, so that int32 accumulators cannot overflow, however long the rows are: by
  // Cauchy-Schwarz every partial sum is within |v_q| |v_m| < 2^31.
  fixed16,
  // Columns of bytes: |v| <= 127, stored as v + 128. They are multiplied with rows of signed bytes.
  fixed8,
  // Rows of bytes: |v| <= 127, or 63 where pairs of products are added in 16 bits, which hold 255 * 63 * 2. The sum of all
  // |v| is at most 2^31 / 255, so every partial sum stays within int32, and 128 times the sum of v as well. Rows of
  // fewer than 66 000 values reach 127; of longer ones, those without large values use less of the eight bits.
  signed8,
  signed7,
  bfloat16,
};

int bytes_per_value(Format format);

// The format of the rows that a packed operand of this format is multiplied with, with an instruction set's kernels.
Format row_format(Format packed, Isa isa);

// gamma for inner products of `k` terms: (1 + u)^k - 1 for floating-point accumulation in any order, 0 for integers.
float accumulation_error(Format format, std::int64_t k);

// Per-row terms of the bound.
struct RowBounds {
  std::vector<float> scale;          // s
  std::vector<float> norm;           // N, rounded up
  std::vector<float> residual;       // rho, rounded up
  std::vector<float> squared;        // |x|^2, to nearest
  std::vector<float> rounded;        // |x^|^2, to nearest
  std::vector<float> slack;          // kSlack N^2 + rho^2
  std::vector<std::int32_t> offset;  // of rows of signed bytes: kByteBias times the sum of v; otherwise empty

  // What was rounded is off by up to `error`: rho holds it, N and |x|^2 are those of what was rounded.
  void widen(std::int64_t i, float error);
  float base(std::int64_t i) const { return rounded[i] - slack[i]; }
  std::int64_t nbytes() const;
};

// Rounded rows, row-major.
struct Rows {
  Format format = Format::float32;
  std::int64_t count = 0, dim = 0, depth = 0;  // depth: dim padded to kDepthStep, or kByteStep
  Bytes values;
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
  std::vector<float> base;  // that of the bounds; +infinity where there is no row yet

  std::int64_t panel_bytes() const { return depth * kPanelWidth * bytes_per_value(format); }
  const std::uint8_t* panel(std::int64_t p) const { return values.data() + p * panel_bytes(); }
  std::int64_t panel_count() const { return (count + kPanelWidth - 1) / kPanelWidth; }
  std::int64_t nbytes() const;

  void reserve(std::int64_t rows, std::int64_t dim, Format format);
  // Copies an already rounded row (same format) into the next column.
  void append(const Rows& rows, std::int64_t row);
  // Leaves what screening reads: intervals cannot be computed and nothing be appended any more.
  void keep_for_screening();
};

// Frame in which rows are rounded: a row x becomes factor (x - center).
struct Frame {
  std::vector<float> center;
  float factor = 1.0f;  // a power of two

  // What a squared distance is multiplied with: in float64, where it neither overflows nor underflows.
  double unit() const { return static_cast<double>(factor) * factor; }
};

// The centre is the mean of the middle half of a sample of the rows in every coordinate, so that a few rows of huge norm
// do not push all the others far from the origin; the factor takes the longest of a sample to [2^32, 2^33).
Frame screening_frame(Matrix<const float> rows);

// y = factor (x - center), and false where y is longer than kScreenNorm or not finite.
bool to_frame(const float* x, const Frame& frame, float* y, std::int64_t dim);

// Rounds rows; their values go to a file in `scratch` if it is not empty. Throws std::invalid_argument that names the first
// row which is not finite, or farther than kLargestNorm from the centre.
Rows round_rows(Matrix<const float> rows, const Frame& frame, Format format, int threads,
                const std::string& scratch = {});
Panels pack_rows(Matrix<const float> rows, const Frame& frame, Format format, int threads);

// Squared distance of two original rows from differences in float64: what decides between contenders. Column i is added to
// sum i % kDistanceSums, squares are rounded before they are added, and then the upper half of the sums is added to the lower
// until one is left: to the bit the same on every processor, and in the shards of a GPU (cuda/k_center_rows.cuh), so that
// equal rows have equal distances wherever they lie.
constexpr int kDistanceSums = 32;
double squared_distance(const float* a, const float* b, std::int64_t dim);

}  // namespace mmad
