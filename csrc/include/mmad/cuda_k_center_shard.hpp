// One shard of an exact greedy k-centre selection on the GPU: the requests of mmad::KCenterShard (k_center_shards.hpp), to
// the bit. The coordinator is the CPU's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "mmad/cuda_device.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

struct KCenterShardRows {
  // The shard's rows, at least one, prepared (bfloat16, some tiles perhaps in host memory), and the original float32 rows:
  // contiguous, in device memory or page-locked host memory, aligned to 16 bytes if the dimension is a multiple of 4.
  Operand operand;
  const float* rows = nullptr;
  const float* center = nullptr;  // what was subtracted before rounding
  std::int64_t centers = 0;       // that it will meet in all, at most; at least 1
};

// What a rise has found, beside the candidates themselves.
struct KCenterRise {
  std::int64_t count = 0;  // candidates
  std::int64_t above = 0;  // rows at the bar or above it
  double below = 0.0;      // not less than the largest value under the bar
};

std::size_t k_center_shard_workspace_bytes(const KCenterShardRows& rows, const DeviceLimits& limits);

class KCenterShard {
 public:
  // The rows and the workspace must outlive it. Everything is queued on `stream`.
  KCenterShard(const KCenterShardRows& rows, const DeviceLimits& limits, void* workspace, Stream stream);
  KCenterShard(KCenterShard&&) noexcept;
  KCenterShard& operator=(KCenterShard&&) noexcept;
  ~KCenterShard();  // waits for the stream

  // Arrays in host memory, which must stay until the next rise has returned; nobody waits here. Rows are not checked.
  void meet(const float* centers, std::int64_t count, const std::int64_t* own);
  void settle(const std::int64_t* rows, const double* squared, std::int64_t count);

  // Writes the candidates to `rows` and `squared` (host, at_most entries) by way of `results` (device, 16 bytes for each),
  // and waits for them.
  KCenterRise rise(double bar, std::int64_t at_most, void* results, std::int64_t* rows, double* squared);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mmad::cuda
