// Rows made ready for the GPU's matrix units: centred, rounded to bfloat16 (or int8), cut into blocks that are the exact
// image of shared memory, with the norms that bound every squared distance computed from them.
//
// The bound. Let q, m be two rows minus the common centre (any centre cancels in a distance), q^, m^ the rounded rows
// that the matrix unit multiplies, rho = |x - x^| and N >= |x|, |x^|, both rounded up. We want
//     T(q, m) = |q - m|^2 - |q|^2 = |m|^2 - 2 <q, m>
// (|q|^2 is common to all that is compared for one query). What is computed is
//     key = fl(n - 2 P),   n = fl(|m|^2),   P = the matrix unit's <q^, m^>.
// 1. Rounding of the rows: <q,m> - <q^,m^> = <q - q^, m> + <q^, m - m^>, so by Cauchy-Schwarz it is at most
//    rho_q N_m + N_q rho_m.
// 2. The matrix unit. Products of bfloat16 are exact. Tensor cores add a block of K products to the accumulator by
//    aligning all terms to the largest and cutting off what lies below its 24th bit, then cut the sum to 24 bits (M. Fasi,
//    N. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Computer Science 7:e330, 2021:
//    K = 4 on Volta, 8 on Ampere; larger later). With S = sum |q^_i m^_i| (1 + eta), which bounds every term and every
//    partial sum, a block errs by at most (K + 1) 2^-23 S for the alignment and 2^-23 S for the sum; D / K blocks give
//    D (1 + 2 / K) 2^-23 S <= 1.5 D 2^-23 S for K >= 4, and S <= (1 + eta) N_q N_m. kappa(D) below is that with eta
//    taken as 2^-6. Products below the normal range may be flushed: kTinyKey covers 2^-126 for each of up to 2^20.
// 3. float32: the difference to the centre is rounded in every column, |m|^2 by 2 u, and n once more, so that
//    |n - |m|^2| <= 3 u N_m^2; the fused multiply-add rounds once, u |key| <= u (N_m^2 + 2 (1 + kappa) N_q N_m).
// Together |key - T| <= E = alpha N_m + beta rho_m + delta with
//     alpha = 2 rho_q + (2 kappa + 4 u) N_q,   beta = 2 N_q,   delta = 4 u N_m^2 + kTinyKey,   u = 2^-24,
// every operation rounded upwards. Rows longer than kLargestNorm are left to float64.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mmad/host_device.hpp"

struct CUstream_st;

namespace mmad::cuda {

using Stream = CUstream_st*;  // the same type as cudaStream_t

constexpr int kTileRows = 128;        // rows of a block
constexpr int kPreparedTogether = 8;  // rows of one tile
constexpr int kTileDepth = 64;        // columns of a block: 128 bytes of bfloat16, one swizzle period
constexpr int kBlockBytes = kTileRows * kTileDepth * 2;
constexpr int kInt8BlockBytes = kTileRows * kTileDepth;
constexpr float kLargestNorm = 1e18f;
constexpr float kTinyKey = 7.9e-31f;  // 2^-100
constexpr int kLargestDim = 16384;

// Prepared rows on the device; a view, owned by the caller. Rows are padded to whole tiles: padding rows are zero with
// squared = +infinity, so no search ever meets them. Where the device is too small for all values, those of the tiles
// from `resident` on lie in page-locked host memory, in the same form; what belongs to a row is on the device always.
struct Operand {
  void* values = nullptr;      // [tile][depth block][128 rows][64 columns], swizzled bfloat16 or plain int8
  void* streamed = nullptr;    // the same from tile `resident` on
  float* squared = nullptr;    // fl(|x|^2) per row
  float* norm = nullptr;       // N per row
  float* residual = nullptr;   // rho per row
  float* scale = nullptr;      // int8 only: x^ = scale * value
  float* tile_norm = nullptr;  // largest N, rho of each tile; all three null in queries_only
  float* tile_residual = nullptr;
  float* largest_norm = nullptr;  // one value: the largest N of all
  std::int64_t rows = 0;
  int dim = 0;
  int tiles = 0;
  int resident = 0;  // tiles in `values`
  int depth_blocks = 0;
  bool int8 = false;
};

MMAD_HD inline int tiles_of(std::int64_t rows) { return static_cast<int>((rows + kTileRows - 1) / kTileRows); }
MMAD_HD inline int depth_blocks_of(int dim) { return (dim + kTileDepth - 1) / kTileDepth; }
MMAD_HD inline std::size_t tile_bytes(int dim, bool int8) {
  return static_cast<std::size_t>(depth_blocks_of(dim)) * (int8 ? kInt8BlockBytes : kBlockBytes);
}

// Place of a tile's values.
MMAD_HD inline unsigned char* tile_values(const Operand& operand, std::int64_t tile) {
  const bool here = tile < operand.resident;
  const auto place = static_cast<std::size_t>(here ? tile : tile - operand.resident);
  return static_cast<unsigned char*>(here ? operand.values : operand.streamed) +
         place * tile_bytes(operand.dim, operand.int8);
}

// Byte offset of element (row, column) inside a bfloat16 block. The eight 16-byte chunks of a row are permuted by the
// row's last three bits, so that eight rows read at one column touch all 32 banks once. This is also the 128-byte
// swizzle of the sm_90 matrix descriptors.
MMAD_HD inline int swizzled_chunk(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }
MMAD_HD inline int swizzled_offset(int row, int column) { return swizzled_chunk(row, column >> 3) + (column & 7) * 2; }

// kappa of the bound above, for rows of `depth_blocks` blocks.
MMAD_HD inline float accumulation_error(int depth_blocks) {
  return static_cast<float>(depth_blocks * kTileDepth) * (1.5f * 1.015625f / 8388608.0f);
}

// alpha and beta of a query.
struct QueryBound {
  float alpha;
  float beta;
};

MMAD_HD inline QueryBound query_bound(float norm, float residual, int depth_blocks) {
  const float relative = multiply_add_up(2.0f, accumulation_error(depth_blocks), 4.0f / 16777216.0f);
  return {multiply_add_up(relative, norm, 2.0f * residual), 2.0f * norm};
}

// E for one pair.
MMAD_HD inline float key_error(QueryBound query, float norm, float residual) {
  const float delta = multiply_add_up(multiply_up(4.0f / 16777216.0f, norm), norm, kTinyKey);
  return multiply_add_up(query.alpha, norm, multiply_add_up(query.beta, residual, delta));
}

// A float32 t such that every key with key - error <= `threshold` is below t.
MMAD_HD inline float screen_threshold(float threshold, float error) {
  return add_up(add_up(threshold, error), 1.17549435e-38f);
}

// Bytes of a buffer for `rows` prepared rows, and the view of such a buffer (aligned to 256 bytes). The buffer holds the
// values of the first `resident` tiles (negative: those of all), and `streamed` those of the others.
std::size_t operand_bytes(std::int64_t rows, int dim, bool int8, int resident = -1);
Operand operand_view(void* buffer, std::int64_t rows, int dim, bool int8, int resident = -1, void* streamed = nullptr);

// The operand without what only rows that are searched need, the largest norms: there is nothing to begin then.
inline Operand queries_only(Operand operand) {
  operand.tile_norm = operand.tile_residual = operand.largest_norm = nullptr;
  return operand;
}

// Tiles [first, first + count) alone, their values at `values`.
Operand operand_part(const Operand& operand, int first, int count, void* values);

// Prepares rows[0 .. count) as the operand's rows [first, first + count); first must be a multiple of kPreparedTogether.
// Rows may be prepared again, from the same values.
// `rows` is any memory the device can read (device memory, or page-locked host memory), `stride` in elements.
// Call operand_begin once before the first part, but not for queries_only.
void operand_begin(const Operand& operand, Stream stream);
void prepare_rows(const float* rows, std::int64_t count, std::int64_t stride, const float* center,
                  const Operand& operand, std::int64_t first, Stream stream);

}  // namespace mmad::cuda
