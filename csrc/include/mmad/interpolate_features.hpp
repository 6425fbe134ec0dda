// Inverse-distance interpolation of features from centres to points on the CPU.
#pragma once

#include <cstdint>

#include "mmad/matrix.hpp"

namespace mmad {

// Weight of a centre at distance d: 1 / (d^power + eps), normalised over the k nearest centres.
struct InverseDistance {
  std::int64_t k = 3;
  double power = 2.0;
  double eps = 1e-8;
};

// weights[n][g] of every centre for every point, 0 where g is not among the k nearest of n (equal distances by lowest
// row): the left factor of the matrix product that serves large k.
void interpolation_weights(Matrix<const float> points, Matrix<const float> centers, const InverseDistance& rule,
                           int threads, Matrix<float> weights);

// Row n of `output` becomes the weighted sum of the feature rows of the centres nearest to point n.
void interpolate_features(Matrix<const float> points, Matrix<const float> centers, Matrix<const float> features,
                          const InverseDistance& rule, int threads, Matrix<float> output);

}  // namespace mmad
