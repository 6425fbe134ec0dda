// A shard of a selection (mmad/cuda_k_center_shard.hpp) against plain loops, of sizes that leave tiles, groups and chunks
// partly empty. Every array is a block of the heap of its own, so that the address sanitizer sees a read or write beside it;
// what is printed is what was wrong, and the number of it is returned.
#define MMAD_CUDA_EMULATOR_MAIN
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cuda_emulated_device.hpp"
#include "mmad/cuda_k_center_shard.hpp"

using namespace mmad::cuda;

namespace {

int failures = 0;

void expect(bool condition, const char* what, std::int64_t rows, int dim) {
  if (condition) return;
  if (++failures < 20) std::printf("%s, %lld rows of %d values\n", what, static_cast<long long>(rows), dim);
}

std::mt19937 generator(3);

std::vector<float> normal(std::int64_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, Free>;

Buffer buffer(std::size_t bytes) { return Buffer(std::aligned_alloc(256, (bytes + 255) / 256 * 256)); }

// mmad/operand.hpp has the order.
double squared_distance(const float* a, const float* b, int dim) {
  double sums[32] = {};
  for (int i = 0; i < dim; ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sums[i % 32] += difference * difference;
  }
  for (int step = 16; step > 0; step /= 2) {
    for (int j = 0; j < step; ++j) sums[j] += sums[j + step];
  }
  return sums[0];
}

// The shard, and what it must say, by loops over all.
struct Pair {
  std::int64_t rows;
  int dim;
  std::vector<float> values, center;
  Buffer prepared, streamed, workspace;
  std::vector<double> expected;
  std::unique_ptr<KCenterShard> shard;

  Pair(std::int64_t rows_, int dim_, std::int64_t centers, int resident) : rows(rows_), dim(dim_) {
    values = normal(rows * dim);
    center = normal(dim);
    expected.assign(static_cast<std::size_t>(rows), std::numeric_limits<double>::infinity());
    const DeviceLimits limits = current_device_limits();
    prepared = buffer(operand_bytes(rows, dim, false, resident));
    streamed = buffer(static_cast<std::size_t>(tiles_of(rows)) * tile_bytes(dim, false));
    KCenterShardRows all;
    all.operand = operand_view(prepared.get(), rows, dim, false, resident, streamed.get());
    all.rows = values.data();
    all.center = center.data();
    all.centers = centers;
    operand_begin(all.operand, nullptr);
    prepare_rows(all.rows, rows, dim, all.center, all.operand, 0, nullptr);
    workspace = buffer(k_center_shard_workspace_bytes(all, limits));
    shard = std::make_unique<KCenterShard>(all, limits, workspace.get(), nullptr);
  }

  const float* row(std::int64_t i) const { return values.data() + i * dim; }

  void meet(std::int64_t count, std::int64_t own_row) {
    std::vector<float> centers = normal(count * dim);
    std::vector<std::int64_t> own(static_cast<std::size_t>(count), -1);
    own.back() = own_row;
    std::copy(row(own_row), row(own_row) + dim, centers.end() - dim);
    shard->meet(centers.data(), count, own.data());
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t c = 0; c < count; ++c) {
        expected[i] = std::min(expected[i], squared_distance(row(i), centers.data() + c * dim, dim));
      }
    }
    expected[own_row] = -1.0;
    const std::vector<std::int64_t> settled{rows - 1, 0};
    const std::vector<double> known{expected[rows - 1], expected[0]};
    shard->settle(settled.data(), known.data(), 2);
  }

  void rise(double bar, std::int64_t at_most) {
    const Buffer results = buffer(static_cast<std::size_t>(at_most) * 16);
    std::vector<std::int64_t> found(static_cast<std::size_t>(at_most));
    std::vector<double> squared(found.size());
    const KCenterRise got = shard->rise(bar, at_most, results.get(), found.data(), squared.data());
    std::vector<std::pair<double, std::int64_t>> wanted;  // the farthest first, of equal ones the lowest
    double below = 0.0;
    for (std::int64_t i = 0; i < rows; ++i) {
      if (expected[i] >= bar) {
        wanted.emplace_back(-expected[i], i);
      } else {
        below = std::max(below, expected[i]);
      }
    }
    std::sort(wanted.begin(), wanted.end());
    expect(got.above == static_cast<std::int64_t>(wanted.size()), "rows at the bar", rows, dim);
    expect(got.below >= below && (got.below == 0.0 || got.below < bar), "the largest below the bar", rows, dim);
    wanted.resize(std::min(wanted.size(), found.size()));
    std::vector<std::pair<double, std::int64_t>> offered;
    for (std::int64_t i = 0; i < got.count; ++i) offered.emplace_back(-squared[i], found[i]);
    std::sort(offered.begin(), offered.end());
    expect(offered == wanted, "candidates", rows, dim);
  }
};

void check(std::int64_t rows, int dim, int resident) {
  const std::vector<std::int64_t> groups{1, 6, 130, 1, 3};
  Pair pair(rows, dim, 141, resident);
  pair.rise(0.0, 3);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    pair.meet(groups[i], static_cast<std::int64_t>(i) * 7 % rows);
    std::vector<double> sorted = pair.expected;
    std::sort(sorted.begin(), sorted.end());
    pair.rise(std::max(0.0, sorted[sorted.size() * 2 / 3]), 5);
    pair.rise(std::max(0.0, sorted[sorted.size() / 3]), rows);
    pair.rise(sorted.back() + 1.0, 4);
  }
  pair.rise(0.0, rows);
}

}  // namespace

int main() {
  for (const int dim : {1, 8, 33, 132}) {
    for (const std::int64_t rows : {1, 2, 128, 300}) check(rows, dim, -1);
    check(1700, dim, 3);  // fourteen tiles, twelve of them a chunk
  }
  if (failures > 0) std::printf("%d wrong\n", failures);
  return failures == 0 ? 0 : 1;
}
