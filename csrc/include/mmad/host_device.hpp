// Arithmetic that host and device code share: bit patterns, rounding in a chosen direction, bfloat16.
//
// The host versions give the same bits as the device's instructions, so that the bounds can be tested without a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __CUDACC__
#define MMAD_HD __host__ __device__
#else
#define MMAD_HD
#endif

namespace mmad {

template <typename To, typename From>
MMAD_HD inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

namespace detail {

// The float32 at or above (below) the exact sum high + low, where |low| is at most half an ulp of `high` in float64.
inline float round_toward(double high, double low, float direction) {
  const float nearest = static_cast<float>(high);
  const double gap = (static_cast<double>(nearest) - high) - low;  // its sign is exact: the first difference is
  if (direction > 0 ? gap < 0 : gap > 0) return std::nextafter(nearest, direction);
  return nearest;
}

inline float sum_toward(double a, double b, float direction) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return static_cast<float>(sum);
  const double part = sum - a;  // Knuth's two-sum: a + b = sum + low exactly
  const double low = (a - (sum - part)) + (b - part);
  return round_toward(sum, low, direction);
}

}  // namespace detail

constexpr float kUp = std::numeric_limits<float>::infinity();

// a + b and a * b + c with one rounding, upwards or downwards.
MMAD_HD inline float add_up(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_ru(a, b);
#else
  return detail::sum_toward(a, b, kUp);
#endif
}

MMAD_HD inline float subtract_down(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fsub_rd(a, b);
#else
  return detail::sum_toward(a, -static_cast<double>(b), -kUp);
#endif
}

MMAD_HD inline float multiply_up(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_ru(a, b);
#else
  return detail::round_toward(static_cast<double>(a) * b, 0.0, kUp);
#endif
}

MMAD_HD inline float multiply_add_up(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_ru(a, b, c);
#else
  return detail::sum_toward(static_cast<double>(a) * b, c, kUp);  // the product of two float32 is exact in float64
#endif
}

MMAD_HD inline float multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

MMAD_HD inline float float_up(double value) {
#ifdef __CUDA_ARCH__
  return __double2float_ru(value);
#else
  return detail::round_toward(value, 0.0, kUp);
#endif
}

// A float32's place in the order of all float32: comparing the images as unsigned integers compares the numbers.
MMAD_HD inline std::uint32_t ordered_bits(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

MMAD_HD inline float from_ordered_bits(std::uint32_t ordered) {
  return bit_cast<float>(ordered & 0x80000000u ? ordered & 0x7FFFFFFFu : ~ordered);
}

// bfloat16 by its bits: round to nearest, ties to even. What would be subnormal becomes zero, so that nothing depends
// on whether a matrix unit flushes subnormal inputs. The argument must be finite and below 3e38.
MMAD_HD inline std::uint16_t to_bfloat16(float value) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>((rounded & 0x7F80u) == 0 ? 0u : rounded);
}

MMAD_HD inline float from_bfloat16(std::uint16_t bits) {
  return bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace mmad
