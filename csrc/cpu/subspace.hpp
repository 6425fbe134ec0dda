// Coordinates of rows in which distances are never longer than they are.
//
// With V0 orthonormal directions, r(x) = |x - V0 V0'x| what they leave of a row, and H any orthogonal matrix,
//
//   z(x) = H [V0'x; r(x)],   |z(x) - z(y)|^2 = |V0'(x - y)|^2 + (r(x) - r(y))^2 <= |x - y|^2
//
// because r(x) - r(y) is at most the length of what V0 leaves of x - y. So a pair that is too far apart in these few
// coordinates is too far apart. The directions need not be the principal axes: any give valid bounds. They should keep
// most of the variance; what they leave is told by its length, which sets apart rows unlike all that were seen. H is
// Hadamard's matrix: it gives every coordinate its share of them all, because in 8 bits a row's largest one sets the
// error of all (operand.hpp).
//
// What is screened are the computed coordinates, which differ from z(x) by at most err: as much more than their rounding
// adds to rho (operand.hpp).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mmad/cpu_features.hpp"
#include "mmad/matrix.hpp"
#include "mmad/operand.hpp"

namespace mmad {

struct Subspace {
  std::int64_t dims = 0;    // coordinates, a power of two; 0: none
  Panels directions;        // float32 columns, HV0'
  std::vector<float> rest;  // H's column for r
  double error = 0.0;       // of H [V0'x; 0], computed, per |x|
  double energy = 0.0;      // share of the sample's squared norm that the directions keep
};

// Leading directions of a set of rows by subspace iteration on a sample; `dims` coordinates, a power of two.
Subspace leading_subspace(Matrix<const float> rows, const Frame& frame, std::int64_t dims, int threads);

// The rows' coordinates, rounded (round_rows), with what projecting adds to their residuals.
Rows project_rows(Matrix<const float> rows, const Frame& frame, const Subspace& subspace, Format format, Isa isa,
                  int threads, const std::string& scratch = {});
Panels project_panels(Matrix<const float> rows, const Frame& frame, const Subspace& subspace, Format format, Isa isa,
                      int threads);

}  // namespace mmad
