#include "mmad/operand.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cpu/clones.hpp"
#include "cpu/parallel.hpp"
#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr float kUnit = 1.0f / (1 << 24);
// Norms and residuals are sums in float64, and widened by this factor, far more than what rounding does to them.
constexpr float kWiden = 1.0f + 1.0f / 1024;
constexpr double kLargestInt16Norm = 46340.0;  // floor(sqrt(2^31 - 1))
constexpr double kLargestByteSum = 8421504.0;  // floor((2^31 - 1) / 255)
constexpr std::int64_t kRowsAtATime = 64;      // rows that a thread takes at a time
constexpr std::int64_t kPanelsAtATime = 4;

struct RowSums {
  double squared;  // squared norm of y
  float largest;   // max |y|
};

MMAD_CLONES RowSums center_row(const float* x, const float* c, float factor, float* y, std::int64_t dim) {
  double squared = 0.0;
  float largest = 0.0f;
#pragma omp simd reduction(+ : squared) reduction(max : largest)
  for (std::int64_t i = 0; i < dim; ++i) {
    const float v = (x[i] - c[i]) * factor;
    y[i] = v;
    squared += static_cast<double>(v) * v;
    largest = std::max(largest, std::fabs(v));
  }
  return {squared, largest};
}

bool within_screen(const RowSums& sums) { return sums.squared <= kScreenNorm * kScreenNorm; }  // false for NaN too

// What the best scale of rounded values is found from.
struct Fit {
  double with, squared;  // <y, v>, |v|^2
};

inline float value_of(std::int16_t v) { return v; }
inline float value_of(std::int8_t v) { return v; }
inline float value_of(std::uint16_t v) {  // bfloat16
  const std::uint32_t bits = std::uint32_t{v} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void round_value(float y, std::int16_t* v) {
  *v = static_cast<std::int16_t>(static_cast<std::int32_t>(__builtin_rintf(y)));
}
inline void round_value(float y, std::int8_t* v) {
  *v = static_cast<std::int8_t>(static_cast<std::int32_t>(__builtin_rintf(y)));
}
// To nearest even on the upper half of the float's bits.
inline void round_value(float y, std::uint16_t* v) {
  std::uint32_t bits;
  std::memcpy(&bits, &y, sizeof bits);
  *v = static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// v = y / s, rounded.
template <typename T>
inline Fit quantise_body(const float* y, float inverse, T* v, std::int64_t dim) {
  double with = 0.0, squared = 0.0;
#pragma omp simd reduction(+ : with, squared)
  for (std::int64_t i = 0; i < dim; ++i) {
    round_value(y[i] * inverse, &v[i]);
    const double value = value_of(v[i]);
    with += value * y[i];
    squared += value * value;
  }
  return {with, squared};
}

// |y - s v|^2
template <typename T>
inline double squared_rest_body(const float* y, double scale, const T* v, std::int64_t dim) {
  double squared = 0.0;
#pragma omp simd reduction(+ : squared)
  for (std::int64_t i = 0; i < dim; ++i) {
    const double rest = y[i] - scale * value_of(v[i]);
    squared += rest * rest;
  }
  return squared;
}

MMAD_CLONES Fit quantise(const float* y, float inverse, std::int16_t* v, std::int64_t dim) {
  return quantise_body(y, inverse, v, dim);
}
MMAD_CLONES Fit quantise(const float* y, float inverse, std::int8_t* v, std::int64_t dim) {
  return quantise_body(y, inverse, v, dim);
}
MMAD_CLONES Fit quantise(const float* y, float inverse, std::uint16_t* v, std::int64_t dim) {
  return quantise_body(y, inverse, v, dim);
}

MMAD_CLONES double squared_rest(const float* y, double scale, const std::int16_t* v, std::int64_t dim) {
  return squared_rest_body(y, scale, v, dim);
}
MMAD_CLONES double squared_rest(const float* y, double scale, const std::int8_t* v, std::int64_t dim) {
  return squared_rest_body(y, scale, v, dim);
}
MMAD_CLONES double squared_rest(const float* y, double scale, const std::uint16_t* v, std::int64_t dim) {
  return squared_rest_body(y, scale, v, dim);
}

// The norm of a row's integers must not exceed kLargestInt16Norm, to which rounding adds at most sqrt(dim) / 2; the sum of
// the absolute values of bytes, at most sqrt(dim) times their norm, not kLargestByteSum.
double integer_room(double norm, std::int64_t dim, Format format) {
  const double root = std::sqrt(static_cast<double>(dim));
  const double largest = format == Format::fixed16 ? kLargestInt16Norm : kLargestByteSum / root;
  return std::max(0.0, largest - 1.0 - 0.5 * root) / norm;
}

double largest_integer(Format format) {
  switch (format) {
    case Format::fixed16: return 32766.0;
    case Format::signed7: return 62.9;
    default: return 126.9;
  }
}

struct Rounding {
  float scale = 1.0f;
  double residual = 0.0;  // |y - scale v|
  double squared = 0.0;   // |scale v|^2
};

// Rounds y / s, and then takes the scale that comes closest to y, <y, v> / |v|^2: what it leaves of y is orthogonal to v.
template <typename T>
Rounding rounded_values(const float* y, float inverse, void* values, std::int64_t dim) {
  T* v = static_cast<T*>(values);
  const Fit fit = quantise(y, inverse, v, dim);
  const double best = fit.squared > 0.0 ? fit.with / fit.squared : 0.0;
  const float scale = std::max(static_cast<float>(best), kLeastScale);
  return {scale, std::sqrt(squared_rest(y, scale, v, dim)), fit.squared * scale * scale};
}

Rounding round_values(const float* y, const RowSums& sums, double norm, std::int64_t dim, Format format, void* values) {
  if (format == Format::float32) {
    std::memcpy(values, y, static_cast<std::size_t>(dim) * sizeof(float));
    return {1.0f, 0.0, sums.squared};
  }
  if (norm == 0.0) return {};
  if (format == Format::bfloat16) {
    // A power of two brings the norm to [1, 2): far from underflow, whatever the unit does with subnormal numbers.
    const int exponent = std::max(std::ilogb(norm), std::ilogb(kLeastScale));
    return rounded_values<std::uint16_t>(y, std::ldexp(1.0f, -exponent), values, dim);
  }
  const double wanted = std::min(integer_room(norm, dim, format), largest_integer(format) / sums.largest);
  const auto inverse = static_cast<float>(std::min(wanted, 1.0 / static_cast<double>(kLeastScale)));
  if (format == Format::fixed16) return rounded_values<std::int16_t>(y, inverse, values, dim);
  return rounded_values<std::int8_t>(y, inverse, values, dim);
}

bool signed_bytes(Format format) { return format == Format::signed8 || format == Format::signed7; }

MMAD_CLONES std::int32_t sum_of(const std::int8_t* v, std::int64_t dim) {
  std::int32_t sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < dim; ++i) sum += v[i];
  return sum;
}

void bias(std::uint8_t* v, std::int64_t dim) {
  for (std::int64_t i = 0; i < dim; ++i) v[i] ^= kByteBias;  // v + 128, in two's complement
}

// Rounds one row into `values` (row-major, zero beforehand) and records its terms.
void round_row(const float* x, const Frame& frame, std::int64_t dim, Format format, float* y, void* values,
               RowBounds* bounds, std::int64_t at) {
  const RowSums sums = center_row(x, frame.center.data(), frame.factor, y, dim);
  if (!within_screen(sums)) {  // too long, or not finite
    bounds->slack[at] = kNoScreen;
    return;
  }
  const double norm = std::sqrt(sums.squared);
  const Rounding rounding = round_values(y, sums, norm, dim, format, values);
  if (format == Format::fixed8) bias(static_cast<std::uint8_t*>(values), dim);
  if (signed_bytes(format)) bounds->offset[at] = kByteBias * sum_of(static_cast<const std::int8_t*>(values), dim);
  // |x - x^| <= |y - x^| + u |x - c|; the second term is the rounding of the subtraction of the centre.
  const double residual = rounding.residual + 4.0 * kUnit * norm;
  bounds->scale[at] = rounding.scale;
  bounds->residual[at] = static_cast<float>(residual) * kWiden + kTiny;
  bounds->norm[at] = static_cast<float>(norm + residual) * kWiden + kTiny;
  bounds->squared[at] = static_cast<float>(sums.squared);
  bounds->rounded[at] = static_cast<float>(rounding.squared);
  bounds->slack[at] = kSlack * bounds->norm[at] * bounds->norm[at] + kTiny;
  bounds->slack[at] += kWiden * bounds->residual[at] * bounds->residual[at];
}

void resize(RowBounds* bounds, std::int64_t size) {
  for (auto* one :
       {&bounds->scale, &bounds->norm, &bounds->residual, &bounds->squared, &bounds->rounded, &bounds->slack}) {
    resize_for<float>("bounds of the rows", one, size);
  }
}

std::int64_t padded_depth(std::int64_t dim, Format format) {
  const std::int64_t step = bytes_per_value(format) == 1 ? kByteStep : kDepthStep;
  return (dim + step - 1) / step * step;
}

// Column `column` of a panel takes the values of one row: what fills 32 bits stays together, because that is what
// pmaddwd, vpdpwssd, vpdpbusd and the AMX products consume.
void place_in_panel(const void* row, std::int64_t depth, Format format, int column, std::uint8_t* panel) {
  const auto* from = static_cast<const std::uint32_t*>(row);
  auto* to = reinterpret_cast<std::uint32_t*>(panel) + column;
  const std::int64_t units = depth * bytes_per_value(format) / 4;
  for (std::int64_t u = 0; u < units; ++u) to[u * kPanelWidth] = from[u];
}

bool finite(const float* row, std::int64_t dim) {
  return std::all_of(row, row + dim, [](float value) { return std::isfinite(value); });
}

// Rows that the frame cannot hold are rare, and are looked at again.
bool acceptable(const float* row, const Frame& frame, std::vector<float>* y) {
  const RowSums sums = center_row(row, frame.center.data(), 1.0f, y->data(), static_cast<std::int64_t>(y->size()));
  return sums.squared <= kLargestNorm * kLargestNorm;  // NaN fails the comparison too
}

void check_rows(Matrix<const float> rows, std::int64_t bad) {
  if (bad < 0) return;
  const std::string name = "row " + std::to_string(bad);
  if (!finite(rows.row(bad), rows.cols)) {
    throw std::invalid_argument(name + " holds NaN or infinity; expected finite values");
  }
  throw std::invalid_argument(name + " has a norm above 1e18; squared distances would not fit float32");
}

void lower_bad_row(std::atomic<std::int64_t>* bad, std::int64_t row) {
  std::int64_t seen = bad->load();
  while ((seen < 0 || row < seen) && !bad->compare_exchange_weak(seen, row)) {
  }
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

float screening_factor(Matrix<const float> rows, const std::vector<float>& center) {
  constexpr std::int64_t kSample = 4096;
  constexpr int kTarget = 32, kLeast = -28, kMost = 126;
  const std::int64_t taken = std::min(rows.rows, kSample);
  std::vector<float> y(static_cast<std::size_t>(rows.cols));
  double largest = 0.0;
  for (std::int64_t i = 0; i < taken; ++i) {
    const float* row = rows.row(i * rows.rows / taken);
    const double squared = center_row(row, center.data(), 1.0f, y.data(), rows.cols).squared;
    if (squared <= kLargestNorm * kLargestNorm) largest = std::max(largest, squared);
  }
  if (largest == 0.0) return 1.0f;
  return std::ldexp(1.0f, std::clamp(kTarget - std::ilogb(std::sqrt(largest)), kLeast, kMost));
}

}  // namespace

int bytes_per_value(Format format) {
  switch (format) {
    case Format::float32: return 4;
    case Format::fixed16:
    case Format::bfloat16: return 2;
    default: return 1;
  }
}

Format row_format(Format packed, Isa isa) {
  if (packed != Format::fixed8) return packed;
  const bool whole = isa == Isa::generic || isa >= Isa::amx || (isa >= Isa::avx512 && has_avx512_vnni());
  return whole ? Format::signed8 : Format::signed7;
}

void RowBounds::widen(std::int64_t i, float error) {
  const float before = residual[i];
  residual[i] = (before + error) * kWiden;
  slack[i] += kWiden * (residual[i] * residual[i] - before * before);
}

std::int64_t RowBounds::nbytes() const {
  std::size_t values = 0;
  for (const auto* one : {&scale, &norm, &residual, &squared, &rounded, &slack}) values += one->size();
  return static_cast<std::int64_t>(values * sizeof(float) + offset.size() * sizeof(std::int32_t));
}

float accumulation_error(Format format, std::int64_t k) {
  if (format != Format::float32 && format != Format::bfloat16) return 0.0f;
  return 1.01f * static_cast<float>(std::expm1(static_cast<double>(k + 2) * kUnit));
}

std::int64_t Panels::nbytes() const {
  return static_cast<std::int64_t>(values.size() + base.size() * sizeof(float)) + bounds.nbytes();
}

void Panels::keep_for_screening() {
  for (auto* one : {&bounds.squared, &bounds.rounded, &bounds.slack}) std::vector<float>().swap(*one);
}

void Panels::reserve(std::int64_t rows, std::int64_t dim_, Format format_) {
  format = format_;
  dim = dim_;
  depth = padded_depth(dim_, format_);
  const std::int64_t pairs = (rows + 2 * kPanelWidth - 1) / (2 * kPanelWidth);  // kernels read two panels at a time
  resize_for<std::uint8_t>("the search copy of the bank", &values, pairs * 2 * panel_bytes());
  resize(&bounds, pairs * 2 * kPanelWidth);
  resize_for("bounds of the rows", &base, pairs * 2 * kPanelWidth, std::numeric_limits<float>::infinity());
}

void Panels::append(const Rows& rows, std::int64_t row) {
  const std::int64_t at = count++;
  std::uint8_t* panel = values.data() + at / kPanelWidth * panel_bytes();
  place_in_panel(rows.row(row), depth, format, static_cast<int>(at % kPanelWidth), panel);
  bounds.scale[at] = rows.bounds.scale[row];
  bounds.norm[at] = rows.bounds.norm[row];
  bounds.residual[at] = rows.bounds.residual[row];
  bounds.squared[at] = rows.bounds.squared[row];
  bounds.rounded[at] = rows.bounds.rounded[row];
  bounds.slack[at] = rows.bounds.slack[row];
  base[at] = bounds.base(at);
}

Frame screening_frame(Matrix<const float> rows) {
  Frame frame;
  if (rows.rows == 0) {
    frame.center.assign(static_cast<std::size_t>(rows.cols), 0.0f);
    return frame;
  }
  frame.center = robust_center(rows);
  frame.factor = screening_factor(rows, frame.center);
  return frame;
}

bool to_frame(const float* x, const Frame& frame, float* y, std::int64_t dim) {
  return within_screen(center_row(x, frame.center.data(), frame.factor, y, dim));
}

Rows round_rows(Matrix<const float> rows, const Frame& frame, Format format, int threads, const std::string& scratch) {
  Rows out;
  out.format = format;
  out.count = rows.rows;
  out.dim = rows.cols;
  out.depth = padded_depth(rows.cols, format);
  // Tile kernels read whole tiles: spare rows behind the last one.
  out.values = Bytes((out.count + kSpareRows) * out.row_bytes(), "the rounded rows", scratch);
  resize(&out.bounds, out.count);
  if (signed_bytes(format)) resize_for<std::int32_t>("bounds of the rows", &out.bounds.offset, out.count);
  std::atomic<std::int64_t> bad{-1};
  parallel(threads, out.count, kRowsAtATime, [&](Items& items) {
    std::vector<float> y(static_cast<std::size_t>(out.dim));
    items.each([&](std::int64_t i) {
      std::uint8_t* values = out.values.data() + i * out.row_bytes();
      round_row(rows.row(i), frame, out.dim, format, y.data(), values, &out.bounds, i);
      if (out.bounds.slack[i] == kNoScreen && !acceptable(rows.row(i), frame, &y)) lower_bad_row(&bad, i);
    });
  });
  check_rows(rows, bad.load());
  return out;
}

Panels pack_rows(Matrix<const float> rows, const Frame& frame, Format format, int threads) {
  Panels out;
  out.reserve(rows.rows, rows.cols, format);
  out.count = rows.rows;
  std::atomic<std::int64_t> bad{-1};
  parallel(threads, out.panel_count(), kPanelsAtATime, [&](Items& items) {
    std::vector<float> y(static_cast<std::size_t>(out.dim));
    std::vector<std::uint32_t> row(static_cast<std::size_t>(out.depth), 0);
    items.each([&](std::int64_t p) {
      std::uint8_t* panel = out.values.data() + p * out.panel_bytes();
      for (std::int64_t i = p * kPanelWidth; i < std::min(out.count, (p + 1) * kPanelWidth); ++i) {
        std::fill(row.begin(), row.end(), 0u);
        round_row(rows.row(i), frame, out.dim, format, y.data(), row.data(), &out.bounds, i);
        if (out.bounds.slack[i] == kNoScreen && !acceptable(rows.row(i), frame, &y)) lower_bad_row(&bad, i);
        place_in_panel(row.data(), out.depth, format, static_cast<int>(i % kPanelWidth), panel);
        out.base[i] = out.bounds.base(i);
      }
    });
  });
  check_rows(rows, bad.load());
  return out;
}

// Neighbouring columns go to neighbouring sums, which are added across at the end: loops that the compiler vectorises
// without changing any sum, however wide its vectors are.
MMAD_CLONES MMAD_UNFUSED double squared_distance(const float* a, const float* b, std::int64_t dim) {
  double sums[kDistanceSums] = {};
  const auto add = [&sums, a, b](std::int64_t i, int j) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    const double square = difference * difference;
    sums[j] += square;
  };
  std::int64_t i = 0;
  for (; i + kDistanceSums <= dim; i += kDistanceSums) {
    for (int j = 0; j < kDistanceSums; ++j) add(i + j, j);
  }
  for (int j = 0; i + j < dim; ++j) add(i + j, j);
  for (int step = kDistanceSums / 2; step > 0; step /= 2) {
    if (step >= dim) continue;  // nothing but zeros there
    for (int j = 0; j < step; ++j) sums[j] += sums[j + step];
  }
  return sums[0];
}

}  // namespace mmad
