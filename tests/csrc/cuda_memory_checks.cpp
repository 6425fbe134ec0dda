// The point kernels and the gather on values that only the device sees: NaN, infinity, row numbers out of range. Every
// array is a block of the heap of its own, so that the address sanitizer sees a read or write beside it; what is printed
// is what was wrong, and the number of it is returned.
#define MMAD_CUDA_EMULATOR_MAIN
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cuda/farthest_point_sample.cu"
#include "cuda/gather_rows.cu"
#include "cuda/interpolate_features.cu"
#include "cuda/knn_group.cu"

using namespace mmad::cuda;

namespace {

int failures = 0;

void expect(bool condition, const char* what, const char* values, double found = 0) {
  if (condition) return;
  if (++failures < 20) std::printf("%s, %s: %g\n", what, values, found);
}

std::mt19937 generator(3);

std::vector<float> normal(std::size_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(generator);
  return values;
}

struct Fault {
  const char* name;
  float value;
  int every;  // row that holds it; 1: all of them
};

constexpr float kHuge = std::numeric_limits<float>::max();
const Fault kFaults[] = {{"NaN in places", kNaN32, 3},
                         {"NaN everywhere", kNaN32, 1},
                         {"infinity in places", kInfinity32, 3},
                         {"infinity everywhere", kInfinity32, 1},
                         {"-infinity in places", -kInfinity32, 2},
                         {"the largest floats", kHuge, 2},
                         {"all but row 0 NaN", kNaN32, 0}};

// Puts the fault into one value of the rows that it names.
void damage(std::vector<float>& values, std::size_t dim, const Fault& fault) {
  for (std::size_t row = 0; row < values.size() / dim; ++row) {
    const bool hit = fault.every == 0 ? row > 0 : row % static_cast<std::size_t>(fault.every) == 0;
    if (hit) values[row * dim + row % dim] = fault.value;
  }
}

void inside(const std::vector<std::int64_t>& rows, std::int64_t count, const char* what, const char* values) {
  for (const std::int64_t row : rows) expect(row >= 0 && row < count, what, values, static_cast<double>(row));
}

void sampling(const Fault& fault, std::size_t shared_memory, std::int64_t first_size, std::int64_t n_select,
              int multiprocessors) {
  constexpr std::int64_t second_size = 70;
  std::vector<float> points = normal(3 * (first_size + second_size));
  damage(points, 3, fault);
  const std::vector<std::int64_t> first_rows{0, first_size}, sizes{first_size, second_size};
  std::vector<std::int64_t> picks(2 * n_select, -1);
  std::vector<double> workspace(farthest_point_workspace_bytes(first_size + second_size) / sizeof(double) + 1);
  DeviceLimits limits{multiprocessors, shared_memory, shared_memory, 9, 0};
  farthest_point_sample(points.data(), first_size + second_size, first_rows.data(), sizes.data(), 2, first_size,
                        n_select, 2, -1.0, workspace.data(), picks.data(), limits, nullptr);
  const auto middle = picks.begin() + n_select;
  inside({picks.begin(), middle}, first_size, "farthest_point_sample", fault.name);
  inside({middle, picks.end()}, second_size, "farthest_point_sample", fault.name);
}

void grouping(const Fault& fault, bool bad_points, bool bad_centers, int k) {
  std::vector<float> points = normal(3 * 150), centers = normal(3 * 11);
  if (bad_points) damage(points, 3, fault);
  if (bad_centers) damage(centers, 3, fault);
  std::vector<std::int64_t> rows(static_cast<std::size_t>(11 * k), -1);
  knn_group(points.data(), 150, centers.data(), 11, 1, k, rows.data(), nullptr);
  inside(rows, 150, "knn_group", fault.name);
}

void interpolation(const Fault& fault, bool bad_points, bool bad_centers, int k, int dim) {
  std::vector<float> points = normal(3 * 40), centers = normal(3 * 32);
  std::vector<float> features = normal(static_cast<std::size_t>(32 * dim));
  std::vector<float> output(static_cast<std::size_t>(40 * dim), -1.0f);
  if (bad_points) damage(points, 3, fault);
  if (bad_centers) damage(centers, 3, fault);
  interpolate_features(points.data(), 40, centers.data(), 32, features.data(), 1, dim, k, 2.0, 1e-8, output.data(),
                       nullptr);
}

void gathering(int dim) {
  const std::vector<float> rows = normal(static_cast<std::size_t>(9 * dim));
  constexpr std::int64_t kLowest = std::numeric_limits<std::int64_t>::min();
  const std::vector<std::int64_t> numbers{0, 8, 9, -1, kLowest, std::numeric_limits<std::int64_t>::max(), 3};
  std::vector<float> output(numbers.size() * static_cast<std::size_t>(dim), -1.0f);
  gather_rows(rows.data(), 9, dim, numbers.data(), static_cast<std::int64_t>(numbers.size()), output.data(), nullptr);
  for (std::size_t i = 0; i < output.size(); ++i) {
    const std::int64_t row = numbers[i / static_cast<std::size_t>(dim)];
    const bool known = row >= 0 && row < 9;
    const float found = output[i];
    expect(
        known ? found == rows[static_cast<std::size_t>(row * dim) + i % static_cast<std::size_t>(dim)] : found != found,
        "gather_rows", "row numbers out of range", found);
  }
}

}  // namespace

int main() {
  for (const Fault& fault : kFaults) {
    sampling(fault, std::size_t{227} << 10, 130, 60, 3);
    sampling(fault, 0, 130, 60, 3);                       // all in device memory
    sampling(fault, std::size_t{227} << 10, 4200, 6, 6);  // three blocks per cloud
    for (const int which : {1, 2, 3}) {
      for (const int k : {1, 40, 128}) grouping(fault, which & 1, which & 2, k);
      for (const int k : {1, 3, 32}) interpolation(fault, which & 1, which & 2, k, k == 3 ? 7 : 8);
    }
  }
  for (const int dim : {3, 8}) gathering(dim);
  if (failures > 0) std::printf("%d wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
