// Checks of the arithmetic that the CUDA kernels share with the host: prints what fails, and returns the number of it.
// Compiled with the emulator's header, whose matrix unit cuts as the worst model in cuda_operand.hpp does.
#define MMAD_CUDA_EMULATOR_MAIN
#include <cfenv>
#include <cstdio>
#include <random>
#include <set>

#include "cuda/radix_select.cuh"
#include "cuda_emulator.hpp"
#include "mmad/cuda_operand.hpp"

using namespace mmad;
using namespace mmad::cuda;

namespace {

int failures = 0;

void expect(bool condition, const char* what, double a = 0, double b = 0) {
  if (condition) return;
  if (++failures < 20) std::printf("%s: %.17g %.17g\n", what, a, b);
}

std::mt19937_64 generator(7);

float any_float() {  // all magnitudes, zero and subnormal included
  std::uint32_t bits = 0;
  do bits = static_cast<std::uint32_t>(generator());
  while ((bits & 0x7F800000u) == 0x7F800000u);
  return bit_cast<float>(bits);
}

double uniform() { return std::uniform_real_distribution<double>(0.0, 1.0)(generator); }

// The processor's own directed rounding, kept from being computed at compile time.
float rounded(int mode, float (*operation)(float, float, float), float a, float b, float c) {
  std::fesetround(mode);
  const float result = operation(a, b, c);
  std::fesetround(FE_TONEAREST);
  return result;
}

__attribute__((noinline)) float plain_add(float a, float b, float) {
  volatile float x = a, y = b;
  return x + y;
}
__attribute__((noinline)) float plain_subtract(float a, float b, float) {
  volatile float x = a, y = b;
  return x - y;
}
__attribute__((noinline)) float plain_multiply(float a, float b, float) {
  volatile float x = a, y = b;
  return x * y;
}
__attribute__((noinline)) float plain_fma(float a, float b, float c) { return std::fma(a, b, c); }

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void directed_rounding() {
  for (int i = 0; i < 200000; ++i) {
    const float a = any_float(), c = any_float();
    const float b = i % 3 == 0 ? a * static_cast<float>(1.0 + uniform()) : any_float();
    expect(same(add_up(a, b), rounded(FE_UPWARD, plain_add, a, b, 0)), "add_up", a, b);
    expect(same(subtract_down(a, b), rounded(FE_DOWNWARD, plain_subtract, a, b, 0)), "subtract_down", a, b);
    const float product = static_cast<float>(static_cast<double>(a) * b);
    if (std::isfinite(product) && std::fabs(product) > 1e-30f) {
      expect(same(multiply_up(a, b), rounded(FE_UPWARD, plain_multiply, a, b, 0)), "multiply_up", a, b);
    }
    const float fused = rounded(FE_UPWARD, plain_fma, a, b, c);
    if (std::isfinite(fused) && std::isfinite(product))
      expect(same(multiply_add_up(a, b, c), fused), "multiply_add_up", a, b);
    expect(from_ordered_bits(ordered_bits(a)) == a, "ordered_bits there and back", a);
    if (a < b) expect(ordered_bits(a) < ordered_bits(b), "ordered_bits order", a, b);
    const float threshold = screen_threshold(a, std::fabs(b) * 1e-3f);
    expect(threshold > a || !(std::fabs(a) < 1e38f), "screen_threshold", a, b);
  }
}

void bfloat16() {
  for (std::uint32_t high = 0; high < 0x7F80u; ++high) {
    const float exact = from_bfloat16(static_cast<std::uint16_t>(high));
    const bool subnormal = high < 0x80u;
    expect(to_bfloat16(exact) == (subnormal ? 0 : high), "bfloat16 is its own rounding", exact);
    if (subnormal || high + 1 >= 0x7F80u) continue;
    const float next = from_bfloat16(static_cast<std::uint16_t>(high + 1));
    const float middle = exact + (next - exact) / 2;
    expect(to_bfloat16(middle) == (high % 2 == 0 ? high : high + 1), "bfloat16 tie to even", middle);
    expect(to_bfloat16(std::nextafter(middle, 0.0f)) == high, "bfloat16 below the tie", middle);
    expect(to_bfloat16(std::nextafter(middle, kInfinity32)) == high + 1, "bfloat16 above the tie", middle);
  }
}

void swizzle() {
  std::set<int> offsets;
  for (int row = 0; row < kTileRows; ++row) {
    for (int column = 0; column < kTileDepth; ++column) offsets.insert(swizzled_offset(row, column));
  }
  expect(offsets.size() == static_cast<std::size_t>(kTileRows * kTileDepth), "swizzle is one to one");
  expect(*offsets.begin() == 0 && *offsets.rbegin() == kBlockBytes - 2, "swizzle stays in its block");
  for (int row = 0; row < kTileRows; row += 8) {
    for (int chunk = 0; chunk < 8; ++chunk) {  // what one ldmatrix phase reads: eight rows at one column
      std::set<int> banks;
      for (int i = 0; i < 8; ++i) banks.insert(swizzled_chunk(row + i, chunk) % 128);
      expect(banks.size() == 8, "swizzle avoids bank conflicts", row, chunk);
    }
  }
  // The pattern of the sm_90 descriptors: bits 4 to 6 of the offset are those of the plain layout xor bits 7 to 9.
  for (int row = 0; row < kTileRows; ++row) {
    for (int chunk = 0; chunk < 8; ++chunk) {
      const int plain = row * 128 + chunk * 16;
      expect(swizzled_chunk(row, chunk) == (plain ^ ((plain >> 7 & 7) << 4)), "128-byte swizzle", row, chunk);
    }
  }
}

// Two rows, rounded as the kernels do; the key as the worst matrix unit gives it, and T in float64.
struct Pair {
  double exact_key, error;
  float key;
};

struct Rounded {
  std::vector<std::uint16_t> values;
  float norm, residual, squared;
};

Rounded round_row(const std::vector<float>& row) {
  Rounded out;
  double squared = 0, narrow = 0, residual = 0;
  for (float x : row) {
    out.values.push_back(to_bfloat16(x));
    const double h = from_bfloat16(out.values.back());
    squared += double(x) * x;
    narrow += h * h;
    residual += (x - h) * (x - h);
  }
  constexpr double up = 1.0 + 1.0 / (1 << 30);
  out.norm = float_up(std::sqrt(std::max(squared, narrow)) * up);
  out.residual = float_up(std::sqrt(residual) * up);
  out.squared = static_cast<float>(squared);
  return out;
}

float matrix_unit(const Rounded& a, const Rounded& b, int block) {
  float sum = 0;
  for (std::size_t i = 0; i < a.values.size(); i += block) {
    double products[16];
    for (int j = 0; j < block; ++j)
      products[j] = double(from_bfloat16(a.values[i + j])) * from_bfloat16(b.values[i + j]);
    sum = mmad_emulator::add_cut(sum, products, block);
  }
  return sum;
}

// How the values of a test row are drawn.
float draw(int kind, int i, double scale) {
  switch (kind) {
    case 0: return static_cast<float>(scale * (uniform() - 0.5));
    case 1: return static_cast<float>(scale * (1.0 + 0.00390620 * uniform()));               // all of one sign and size
    case 2: return static_cast<float>(scale * std::exp(20 * (uniform() - 0.5)));             // a few dominate
    case 3: return static_cast<float>(scale * (i % 2 ? -1 : 1) * (1.0 + 1.0 / 512 - 1e-9));  // worst rounding residual
    default: return i == 0 ? static_cast<float>(scale * 4096) : static_cast<float>(scale * 0.000244 * (1 + uniform()));
  }
}

void bounds() {
  double worst = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const int depth_blocks = 1 + trial % 12;
    const int depth = depth_blocks * kTileDepth;
    const double scale = std::ldexp(1.0, static_cast<int>(generator() % 60) - 30);
    const double other_scale = trial % 4 == 0 ? scale * 1000 : scale;
    std::vector<float> q, m;
    for (int i = 0; i < depth; ++i) {
      q.push_back(draw(trial % 5, i, scale));
      m.push_back(trial % 7 == 0 ? q.back() * static_cast<float>(1 + 1e-3 * uniform())
                                 : draw(trial / 5 % 5, i, other_scale));
    }
    const Rounded a = round_row(q), b = round_row(m);
    double product = 0, squared = 0;
    for (int i = 0; i < depth; ++i) {
      product += double(q[i]) * m[i];
      squared += double(m[i]) * m[i];
    }
    const double exact = squared - 2 * product;
    const float error = key_error(query_bound(a.norm, a.residual, depth_blocks), b.norm, b.residual);
    for (int block : {4, 8, 16}) {
      const float key = multiply_add(-2.0f, matrix_unit(a, b, block), b.squared);
      const double gap = std::fabs(key - exact);
      worst = std::max(worst, gap / error);
      expect(gap <= error, "the bound holds", gap, error);
      expect(subtract_down(key, error) <= exact && add_up(key, error) >= exact, "the interval holds T", key, exact);
    }
  }
  expect(worst > 0.2, "the trials come near the bound", worst);
}

// The digits of an entry, most significant first, order like the entry; and extending a prefix digit by digit rebuilds it.
void radix_digits() {
  for (int trial = 0; trial < 20000; ++trial) {
    SelectEntry a{generator() >> 1, static_cast<std::uint32_t>(generator())};
    SelectEntry b{trial % 2 ? a.key : generator() >> 1, static_cast<std::uint32_t>(generator())};
    if (trial % 5 == 0) b.key = a.key ^ (1ull << (generator() % 62));
    SelectEntry prefix{0, 0};
    int order = 0;
    for (int pass = 0; pass < kSelectPasses; ++pass) {
      expect(select_matches(a, prefix, pass), "an entry matches its own prefix", pass);
      expect(select_matches(b, prefix, pass) == (order == 0), "another matches while its digits agree", pass);
      const int da = select_digit(a, pass), db = select_digit(b, pass);
      expect(da >= 0 && da < kSelectBins, "a digit has a bin", da);
      if (order == 0 && da != db) order = da < db ? -1 : 1;
      select_extend(prefix, pass, da);
    }
    expect(prefix.key == a.key && prefix.inverted == a.inverted, "the digits rebuild the entry");
    const bool larger = a.key > b.key || (a.key == b.key && a.inverted > b.inverted);
    expect((order > 0) == larger, "digits order like entries");
  }
}

}  // namespace

int main() {
  directed_rounding();
  bfloat16();
  swizzle();
  bounds();
  radix_digits();
  if (failures > 0) std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
