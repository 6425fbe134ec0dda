// Exact greedy k-centre selection on the GPU, in blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "mmad/cuda_device.hpp"
#include "mmad/cuda_operand.hpp"

namespace mmad::cuda {

struct KCenterProblem {
  // The rows to choose from, prepared (bfloat16, some tiles perhaps in host memory), and the original float32 rows:
  // contiguous, in device memory or page-locked host memory, aligned to 16 bytes if the dimension is a multiple of 4.
  Operand operand;
  const float* rows = nullptr;
  // Earlier centres to continue from (may be none), in device memory, and what was subtracted from all rows.
  const float* earlier = nullptr;
  std::int64_t earlier_count = 0;
  const float* center = nullptr;
  std::int64_t count = 0;  // picks at most; at least 1 without earlier centres
  std::int64_t start = 0;  // first pick; not used where there are earlier centres
  double radius = -1.0;    // stop once every row lies within this distance of a centre; negative: never
  std::int64_t pool = 0;   // number of rows that a block works on, 0 chooses; the selection does not depend on it
};

struct KCenterOutcome {
  std::int64_t count = 0;        // picks made
  double covering_radius = 0.0;  // distance of the farthest row that was not picked to its nearest centre
};

std::size_t k_center_workspace_bytes(const KCenterProblem& problem, const DeviceLimits& limits);

// Selects as the textbook loop with float64 distances would; ties go to the lowest row and no row comes twice. `picks`
// and `radii` (device, `count` entries) receive the rows in order of selection and the distance of each to its nearest
// earlier centre, infinity for the first of all. Waits for the stream once per block of picks, and then calls
// `progress` (may be empty, may throw) with the number of picks so far.
KCenterOutcome k_center_greedy(const KCenterProblem& problem, const DeviceLimits& limits, void* workspace,
                               std::int64_t* picks, double* radii, const std::function<void(std::int64_t)>& progress,
                               Stream stream);

}  // namespace mmad::cuda
