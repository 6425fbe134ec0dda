// Exact greedy k-centre selection (farthest-first traversal, Gonzalez 1985) in blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "mmad/cpu_features.hpp"
#include "mmad/matrix.hpp"
#include "mmad/operand.hpp"

namespace mmad {

struct KCenterOptions {
  std::int64_t start = 0;  // first pick; not used where there are earlier centres
  double radius = -1.0;    // stop once every row lies within this distance of a centre; negative: never
  std::int64_t pool = 0;   // number of rows that a block works on, 0 chooses; the selection does not depend on it
  double sinking = 0.93;   // first step of the bar where too few rows are left above it; 0: by how values thin out
  int threads = 1;
  Isa isa = Isa::generic;
  Format format = Format::float32;
  std::string scratch;  // folder for the rounded rows of more rows than memory holds; empty: they are in memory
  int file = -1;        // with scratch, a file whose private mapping the rows are, from its first byte on; -1: unknown
  std::function<void(std::int64_t)> progress;  // called between blocks with the number of picks; may throw
};

struct KCenterResult {
  std::vector<std::int64_t> rows;  // in order of selection
  std::vector<double> radii;       // distance of each pick to its nearest earlier centre; infinity for the first
  double covering_radius = 0.0;    // distance of the farthest row that was not picked to its nearest centre
};

// Selects at most `count` rows, each the farthest from all centres before it; ties go to the lowest row. The selection
// is that of the textbook loop with float64 distances computed from differences. `centers` (may be empty) holds
// earlier centres that the selection continues from. Throws std::invalid_argument that names a row which is not finite.
KCenterResult k_center_greedy(Matrix<const float> rows, Matrix<const float> centers, std::int64_t count,
                              const KCenterOptions& options);

}  // namespace mmad
