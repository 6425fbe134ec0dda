// Leading directions of the rows by subspace iteration (Halko, Martinsson and Tropp 2011, alg. 4.4) on a sample.
//
// The directions need not be the principal axes, nor quite orthonormal: any directions give valid bounds, once divided by
// `stretch`. They only have to keep most of the variance, and to share it evenly: in 8 bits, a row's largest coordinate
// sets the error of all (operand.hpp).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/clones.hpp"
#include "cpu/screen.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kDims = 64;  // a power of two
constexpr std::int64_t kSample = 512;
constexpr int kIterations = 1;
constexpr float kShortest = 1e-30f;  // vectors below it are taken as zero

using Vectors = std::vector<float>;  // row-major, one vector per row

MMAD_CLONES float dot(const float* a, const float* b, std::int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

MMAD_CLONES void add_scaled(float* to, const float* from, float factor, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) to[i] += factor * from[i];
}

// Gram-Schmidt, twice: after the second sweep the vectors are orthonormal to rounding (Giraud et al. 2005).
void orthonormalise(Vectors* vectors, std::int64_t count, std::int64_t dim) {
  for (std::int64_t v = 0; v < count; ++v) {
    float* row = vectors->data() + v * dim;
    for (int sweep = 0; sweep < 2; ++sweep) {
      for (std::int64_t u = 0; u < v; ++u)
        add_scaled(row, vectors->data() + u * dim, -dot(row, &(*vectors)[u * dim], dim), dim);
    }
    const float norm = std::sqrt(dot(row, row, dim));
    const float factor = norm > kShortest ? 1.0f / norm : 0.0f;  // rank-deficient samples leave zero vectors
    for (std::int64_t i = 0; i < dim; ++i) row[i] *= factor;
  }
}

Vectors centred_sample(Matrix<const float> rows, const Frame& frame, std::int64_t* taken) {
  *taken = std::min(rows.rows, kSample);
  Vectors sample(static_cast<std::size_t>(*taken * rows.cols));
  for (std::int64_t i = 0; i < *taken; ++i) {
    const float* row = rows.row(i * rows.rows / *taken);
    float* to = &sample[i * rows.cols];
    const bool held = to_frame(row, frame, to, rows.cols);
    // A few rows of huge norm would take all directions to themselves.
    const float norm = held ? std::sqrt(dot(to, to, rows.cols)) : 0.0f;
    if (norm > kShortest) {
      for (std::int64_t j = 0; j < rows.cols; ++j) to[j] /= norm;
    } else {
      std::fill_n(to, rows.cols, 0.0f);
    }
  }
  return sample;
}

// The sample itself is a good start: evenly spaced rows.
Vectors starting_vectors(const Vectors& sample, std::int64_t taken, std::int64_t dims, std::int64_t dim) {
  Vectors start(static_cast<std::size_t>(dims * dim));
  for (std::int64_t v = 0; v < dims; ++v) std::copy_n(&sample[v * taken / dims * dim], dim, &start[v * dim]);
  return start;
}

// V <- S'S V, and the share of the sample's squared norm that V kept before.
double iterate(const Vectors& sample, std::int64_t taken, Vectors* vectors, std::int64_t dims, std::int64_t dim) {
  Vectors next(vectors->size(), 0.0f);
  double kept = 0.0, total = 0.0;
  for (std::int64_t i = 0; i < taken; ++i) {
    const float* row = &sample[i * dim];
    total += dot(row, row, dim);
    for (std::int64_t v = 0; v < dims; ++v) {
      const float c = dot(row, vectors->data() + v * dim, dim);
      kept += static_cast<double>(c) * c;
      add_scaled(next.data() + v * dim, row, c, dim);
    }
  }
  *vectors = std::move(next);
  return total > 0.0 ? kept / total : 0.0;
}

// The Hadamard transform of kDims vectors, orthonormal: their span stays, and each gets the same share of them all.
// Where some are zero they would not be orthonormal any more, and `stretch` would be large.
void share_evenly(Vectors* vectors, std::int64_t dim) {
  for (std::int64_t v = 0; v < kDims; ++v) {
    if (dot(&(*vectors)[v * dim], &(*vectors)[v * dim], dim) == 0.0f) return;
  }
  const float half = std::sqrt(0.5f);
  for (std::int64_t step = 1; step < kDims; step *= 2) {
    for (std::int64_t v = 0; v < kDims; ++v) {
      if ((v & step) != 0) continue;
      float *a = &(*vectors)[v * dim], *b = a + step * dim;
      for (std::int64_t i = 0; i < dim; ++i) {
        const float sum = a[i] + b[i], difference = a[i] - b[i];
        a[i] = half * sum;
        b[i] = half * difference;
      }
    }
  }
}

// |V'V - I| in the Frobenius norm bounds how far |V|^2 exceeds 1.
double stretch_of(const Vectors& vectors, std::int64_t dims, std::int64_t dim) {
  double off = 0.0;
  for (std::int64_t u = 0; u < dims; ++u) {
    for (std::int64_t v = 0; v < dims; ++v) {
      double product = 0.0;
      for (std::int64_t i = 0; i < dim; ++i)
        product += static_cast<double>(vectors[u * dim + i]) * vectors[v * dim + i];
      const double rest = u == v ? std::max(0.0, product - 1.0) : product;
      off += rest * rest;
    }
  }
  return 1.0 + std::sqrt(off) + 1e-9;
}

}  // namespace

Subspace leading_subspace(Matrix<const float> rows, const Frame& frame) {
  Subspace out;
  std::int64_t taken = 0;
  const Vectors sample = centred_sample(rows, frame, &taken);
  const std::int64_t dims = std::min({kDims, rows.cols, taken});
  Vectors vectors = starting_vectors(sample, taken, dims, rows.cols);
  orthonormalise(&vectors, dims, rows.cols);
  for (int i = 0; i < kIterations; ++i) {
    iterate(sample, taken, &vectors, dims, rows.cols);
    orthonormalise(&vectors, dims, rows.cols);
  }
  if (dims == kDims) share_evenly(&vectors, rows.cols);
  Vectors last = vectors;
  out.energy = iterate(sample, taken, &last, dims, rows.cols);
  out.stretch = stretch_of(vectors, dims, rows.cols);
  out.dims = dims;
  const Frame origin{std::vector<float>(static_cast<std::size_t>(rows.cols), 0.0f), 1.0f};
  const Matrix<const float> directions{vectors.data(), dims, rows.cols};
  out.directions = pack_rows(directions, origin, Format::float32, 1);
  return out;
}

}  // namespace mmad
