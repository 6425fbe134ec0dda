#include "mmad/operand.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/clones.hpp"

namespace mmad {
namespace {

constexpr float kUnit = 1.0f / (1 << 24);
// Norms and residuals are computed in float32 from at most a few thousand terms and widened by this factor, which is far
// more than the rounding of any order of summation: k u < 2^-10 for k < 16384, and longer rows accumulate in blocks.
constexpr float kWiden = 1.0f + 1.0f / 1024;
constexpr std::int64_t kBlock = 4096;
constexpr double kLargestInt16Norm = 46340.0;  // floor(sqrt(2^31 - 1))

struct RowSums {
  double squared;  // of fl(x - c)
  float largest;   // max |x - c|
};

MMAD_CLONES RowSums center_row(const float* x, const float* c, float* y, std::int64_t dim) {
  double squared = 0.0;
  float largest = 0.0f;
#pragma omp simd reduction(+ : squared) reduction(max : largest)
  for (std::int64_t i = 0; i < dim; ++i) {
    const float v = x[i] - c[i];
    y[i] = v;
    squared += static_cast<double>(v) * v;
    largest = std::max(largest, std::fabs(v));
  }
  return {squared, largest};
}

// v = rint(y / s), and the squared residual of y - s v.
template <typename T>
inline double quantise_body(const float* y, float inverse, float scale, T* v, std::int64_t dim) {
  double total = 0.0;
  for (std::int64_t from = 0; from < dim; from += kBlock) {
    const std::int64_t to = std::min(dim, from + kBlock);
    float squared = 0.0f;
#pragma omp simd reduction(+ : squared)
    for (std::int64_t i = from; i < to; ++i) {
      const float rounded = __builtin_rintf(y[i] * inverse);
      v[i] = static_cast<T>(static_cast<std::int32_t>(rounded));
      const float rest = y[i] - scale * rounded;
      squared += rest * rest;
    }
    total += squared;
  }
  return total;
}

MMAD_CLONES double quantise16(const float* y, float inverse, float scale, std::int16_t* v, std::int64_t dim) {
  return quantise_body(y, inverse, scale, v, dim);
}

MMAD_CLONES double quantise8(const float* y, float inverse, float scale, std::int8_t* v, std::int64_t dim) {
  return quantise_body(y, inverse, scale, v, dim);
}

// Round to nearest even on the upper half of the float's bits; `factor` is a power of two, so scaling is exact.
MMAD_CLONES double to_bfloat16(const float* y, float factor, float scale, std::uint16_t* v, std::int64_t dim) {
  double squared = 0.0;
#pragma omp simd reduction(+ : squared)
  for (std::int64_t i = 0; i < dim; ++i) {
    const float scaled = y[i] * factor;
    std::uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof bits);
    bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
    float rounded;
    std::memcpy(&rounded, &bits, sizeof rounded);
    v[i] = static_cast<std::uint16_t>(bits >> 16);
    const double rest = static_cast<double>(y[i]) - static_cast<double>(rounded) * scale;
    squared += rest * rest;
  }
  return squared;
}

// Rounds one row into `values` (row-major, zero-padded beforehand) and records its terms; false if it is not usable.
bool round_row(const float* x, const float* center, std::int64_t dim, Format format, float* y, void* values,
               RowBounds* bounds, std::int64_t at) {
  const RowSums sums = center_row(x, center, y, dim);
  if (!(sums.squared <= kLargestNorm * kLargestNorm)) return false;  // NaN fails the comparison too
  const double norm = std::sqrt(sums.squared);
  float scale = 1.0f;
  double rest = 0.0;
  if (format == Format::fixed16 && norm > 0.0) {
    const double room = kLargestInt16Norm - 1.0 - 0.5 * std::sqrt(static_cast<double>(dim));
    const float inverse = static_cast<float>(std::min(room / norm, 32766.0 / sums.largest));
    scale = 1.0f / inverse;
    rest = quantise16(y, inverse, scale, static_cast<std::int16_t*>(values), dim);
  } else if (format == Format::fixed8 && norm > 0.0) {
    const float inverse = 126.9f / sums.largest;
    scale = 1.0f / inverse;
    rest = quantise8(y, inverse, scale, static_cast<std::int8_t*>(values), dim);
  } else if (format == Format::bfloat16 && norm > 0.0) {
    // A power of two brings the norm to [1, 2): far from underflow, whatever the unit does with subnormal numbers.
    const int exponent = std::ilogb(norm);
    scale = std::ldexp(1.0f, exponent);
    rest = to_bfloat16(y, std::ldexp(1.0f, -exponent), scale, static_cast<std::uint16_t*>(values), dim);
  } else if (format == Format::float32) {
    std::memcpy(values, y, static_cast<std::size_t>(dim) * sizeof(float));
  }
  // |x - x^| <= |y - x^| + u |x - c|; the second term is the rounding of the subtraction of the centre, and twice more
  // cover the evaluation of y - s v in float32.
  const double residual = std::sqrt(rest) + 4.0 * kUnit * norm;
  bounds->scale[at] = scale;
  bounds->residual[at] = static_cast<float>(residual) * kWiden + kTiny;
  bounds->norm[at] = static_cast<float>(norm + residual) * kWiden + kTiny;
  bounds->squared[at] = static_cast<float>(sums.squared);
  bounds->slack[at] = kSlack * bounds->norm[at] * bounds->norm[at] + kTiny;
  return true;
}

void resize(RowBounds* bounds, std::int64_t size) {
  const auto n = static_cast<std::size_t>(size);
  bounds->scale.resize(n, 0.0f);
  bounds->norm.resize(n, 0.0f);
  bounds->residual.resize(n, 0.0f);
  bounds->squared.resize(n, 0.0f);
  bounds->slack.resize(n, 0.0f);
}

std::int64_t padded_depth(std::int64_t dim) { return (dim + kDepthStep - 1) / kDepthStep * kDepthStep; }

// Column `column` of a panel takes the values of one row: pairs of neighbours in k stay together (single values in
// float32), because that is what pmaddwd, vpdpwssd and tdpbf16ps consume.
template <typename Unit>
void interleave(const void* row, std::int64_t units, int column, std::uint8_t* panel) {
  const Unit* from = static_cast<const Unit*>(row);
  Unit* to = reinterpret_cast<Unit*>(panel) + column;
  for (std::int64_t u = 0; u < units; ++u) to[u * kPanelWidth] = from[u];
}

void place_in_panel(const void* row, std::int64_t depth, Format format, int column, std::uint8_t* panel) {
  if (format == Format::fixed8) {
    interleave<std::uint16_t>(row, depth / 2, column, panel);
  } else {
    interleave<std::uint32_t>(row, format == Format::float32 ? depth : depth / 2, column, panel);
  }
}

void check_rows(Matrix<const float> rows, std::int64_t bad) {
  if (bad < 0) return;
  const float* row = rows.row(bad);
  const bool finite = std::all_of(row, row + rows.cols, [](float value) { return std::isfinite(value); });
  const std::string name = "row " + std::to_string(bad);
  if (!finite) throw std::invalid_argument(name + " holds NaN or infinity; expected finite values");
  throw std::invalid_argument(name + " has a norm above 1e18; squared distances would not fit float32");
}

void lower_bad_row(std::atomic<std::int64_t>* bad, std::int64_t row) {
  std::int64_t seen = bad->load();
  while ((seen < 0 || row < seen) && !bad->compare_exchange_weak(seen, row)) {
  }
}

}  // namespace

int bytes_per_value(Format format) {
  switch (format) {
    case Format::float32: return 4;
    case Format::fixed8: return 1;
    default: return 2;
  }
}

Format row_format(Format packed, bool bfloat16_unit) {
  if (packed == Format::fixed8) return bfloat16_unit ? Format::bfloat16 : Format::fixed16;
  return packed;
}

float accumulation_error(Format rows, std::int64_t k) {
  if (rows == Format::fixed16) return 0.0f;
  const float ku = static_cast<float>(k + 2) * kUnit;
  return 1.01f * ku / (1.0f - ku);
}

std::int64_t Panels::nbytes() const {
  const auto floats = bounds.scale.size() * 5 + base.size();
  return static_cast<std::int64_t>(values.size() + floats * sizeof(float));
}

void Panels::reserve(std::int64_t rows, std::int64_t dim_, Format format_) {
  format = format_;
  dim = dim_;
  depth = padded_depth(dim_);
  const std::int64_t pairs = (rows + 2 * kPanelWidth - 1) / (2 * kPanelWidth);  // kernels read two panels at a time
  values.resize(static_cast<std::size_t>(pairs * 2 * panel_bytes()), 0);
  resize(&bounds, pairs * 2 * kPanelWidth);
  base.resize(static_cast<std::size_t>(pairs * 2 * kPanelWidth), std::numeric_limits<float>::infinity());
}

void Panels::append(const Rows& rows, std::int64_t row) {
  const std::int64_t at = count++;
  std::uint8_t* panel = values.data() + at / kPanelWidth * panel_bytes();
  place_in_panel(rows.row(row), depth, format, static_cast<int>(at % kPanelWidth), panel);
  bounds.scale[at] = rows.bounds.scale[row];
  bounds.norm[at] = rows.bounds.norm[row];
  bounds.residual[at] = rows.bounds.residual[row];
  bounds.squared[at] = rows.bounds.squared[row];
  bounds.slack[at] = rows.bounds.slack[row];
  base[at] = bounds.squared[at] - bounds.slack[at];
}

std::vector<float> robust_center(Matrix<const float> rows) {
  constexpr std::int64_t kSample = 256;
  const std::int64_t taken = std::min(rows.rows, kSample);
  std::vector<float> center(static_cast<std::size_t>(rows.cols)), column(static_cast<std::size_t>(taken));
  for (std::int64_t j = 0; j < rows.cols; ++j) {
    for (std::int64_t i = 0; i < taken; ++i) {
      const float value = rows.row(i * rows.rows / taken)[j];
      column[i] = std::isfinite(value) ? value : 0.0f;
    }
    const std::int64_t low = taken / 4, high = taken - taken / 4;
    std::nth_element(column.begin(), column.begin() + low, column.end());
    std::nth_element(column.begin() + low, column.begin() + (high - 1), column.end());
    double sum = 0.0;
    for (std::int64_t i = low; i < high; ++i) sum += column[i];
    center[j] = static_cast<float>(sum / static_cast<double>(high - low));
  }
  return center;
}

Rows round_rows(Matrix<const float> rows, const float* center, Format format, int threads) {
  Rows out;
  out.format = format;
  out.count = rows.rows;
  out.dim = rows.cols;
  out.depth = padded_depth(rows.cols);
  // Tile kernels read whole tiles: spare rows behind the last one.
  out.values.resize(static_cast<std::size_t>((out.count + kSpareRows) * out.row_bytes()), 0);
  resize(&out.bounds, out.count);
  std::atomic<std::int64_t> bad{-1};
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> y(static_cast<std::size_t>(out.dim));
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < out.count; ++i) {
      std::uint8_t* values = out.values.data() + i * out.row_bytes();
      if (!round_row(rows.row(i), center, out.dim, format, y.data(), values, &out.bounds, i)) lower_bad_row(&bad, i);
    }
  }
  check_rows(rows, bad.load());
  return out;
}

Panels pack_rows(Matrix<const float> rows, const float* center, Format format, int threads) {
  Panels out;
  out.reserve(rows.rows, rows.cols, format);
  out.count = rows.rows;
  std::atomic<std::int64_t> bad{-1};
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> y(static_cast<std::size_t>(out.dim));
    std::vector<std::uint32_t> row(static_cast<std::size_t>(out.depth), 0);
#pragma omp for schedule(static)
    for (std::int64_t p = 0; p < out.panel_count(); ++p) {
      std::uint8_t* panel = out.values.data() + p * out.panel_bytes();
      for (std::int64_t i = p * kPanelWidth; i < std::min(out.count, (p + 1) * kPanelWidth); ++i) {
        std::fill(row.begin(), row.end(), 0u);
        if (!round_row(rows.row(i), center, out.dim, format, y.data(), row.data(), &out.bounds, i)) {
          lower_bad_row(&bad, i);
        }
        place_in_panel(row.data(), out.depth, format, static_cast<int>(i % kPanelWidth), panel);
        out.base[i] = out.bounds.squared[i] - out.bounds.slack[i];
      }
    }
  }
  check_rows(rows, bad.load());
  return out;
}

MMAD_CLONES double squared_distance(const float* a, const float* b, std::int64_t dim) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < dim; ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return sum;
}

}  // namespace mmad
