// Subspace iteration (Halko, Martinsson and Tropp 2011, alg. 4.4), and the projections.
#include "cpu/subspace.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/clones.hpp"
#include "cpu/parallel.hpp"
#include "cpu/tile.hpp"
#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr double kUnit = 1.0 / (1 << 24);
constexpr std::int64_t kSample = 1024;
constexpr int kIterations = 2;
constexpr float kShortest = 1e-30f;         // vectors below it are taken as zero
constexpr std::int64_t kChunk = 128;        // terms that the projections add in float32; the sums of chunks are float64
constexpr std::int64_t kBlocksAtATime = 4;  // blocks of rows that a thread projects at a time

using Vectors = std::vector<float>;  // row-major, one vector per row

MMAD_CLONES float dot(const float* a, const float* b, std::int64_t n) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

MMAD_CLONES double product(const float* a, const float* b, std::int64_t n) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * b[i];
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
double iterate(const Vectors& sample, std::int64_t taken, Vectors* vectors, std::int64_t count, std::int64_t dim,
               int threads) {
  Vectors next(vectors->size(), 0.0f);
  std::vector<double> kept(static_cast<std::size_t>(count), 0.0);
  parallel(threads, count, 4, [&](Items& items) {
    items.each([&](std::int64_t v) {
      for (std::int64_t i = 0; i < taken; ++i) {
        const float* row = &sample[i * dim];
        const float c = dot(row, vectors->data() + v * dim, dim);
        kept[v] += static_cast<double>(c) * c;
        add_scaled(next.data() + v * dim, row, c, dim);
      }
    });
  });
  *vectors = std::move(next);
  double total = 0.0;
  for (std::int64_t i = 0; i < taken; ++i) total += dot(&sample[i * dim], &sample[i * dim], dim);
  return total > 0.0 ? std::accumulate(kept.begin(), kept.end(), 0.0) / total : 0.0;
}

// Hadamard's matrix times `dims` rows of `width` values, orthonormal.
void share_evenly(Vectors* rows, std::int64_t dims, std::int64_t width) {
  const float half = std::sqrt(0.5f);
  for (std::int64_t step = 1; step < dims; step *= 2) {
    for (std::int64_t v = 0; v < dims; ++v) {
      if ((v & step) != 0) continue;
      float *a = &(*rows)[v * width], *b = a + step * width;
      for (std::int64_t i = 0; i < width; ++i) {
        const float sum = a[i] + b[i], difference = a[i] - b[i];
        a[i] = half * sum;
        b[i] = half * difference;
      }
    }
  }
}

// |V'V - I| in the Frobenius norm, over the vectors that are not zero: how far V is from orthonormal directions V0, those
// of its polar decomposition, because |sqrt(1 + e) - 1| <= |e| for the eigenvalues e of V'V - I.
double defect(const Vectors& vectors, std::int64_t count, std::int64_t dim) {
  double off = 0.0;
  for (std::int64_t u = 0; u < count; ++u) {
    const double squared = product(&vectors[u * dim], &vectors[u * dim], dim);
    if (squared == 0.0) continue;
    off += (squared - 1.0) * (squared - 1.0);
    for (std::int64_t v = 0; v < u; ++v) {
      const double one = product(&vectors[u * dim], &vectors[v * dim], dim);
      off += 2.0 * one * one;
    }
  }
  return std::sqrt(off) * (1.0 + 1e-9) + 1e-9;
}

// A bound of |computed - H [V0'x; 0]| / |x|. Three parts: an inner product of kChunk terms, whose factors and result are
// rounded too, errs by gamma |w| |x| in each coordinate; V differs from V0 by the defect; and applying H in float32 moves
// the directions by at most 3 u in each of its log2(dims) <= 10 steps, relative to their norm sqrt(dims).
double projection_error(double defect, std::int64_t dims) {
  const double gamma = 1.01 * std::expm1(static_cast<double>(kChunk + 8) * kUnit);
  return (gamma + 32.0 * kUnit) * std::sqrt(static_cast<double>(dims)) * (1.0 + defect) + defect;
}

// Rows in the coordinates of a subspace, and how far off these are; those that the frame does not hold are zero.
struct Projections {
  std::int64_t dims;
  std::vector<float> values, errors;
  std::vector<std::uint8_t> held;
  Frame frame;  // of the coordinates, which are scaled already

  Projections(Matrix<const float> rows, const Frame& source, const Subspace& subspace, Isa isa, int threads);
  Matrix<const float> rows() const { return {values.data(), static_cast<std::int64_t>(errors.size()), dims}; }

  void finish(const double* sums, const float* y, const Subspace& subspace, std::int64_t dim, std::int64_t row);
  void widen(RowBounds* bounds) const;
};

// One block of rows times all directions: sums is (rows, padded directions).
void multiply_chunks(const TileKernel& kernel, const float* block, const Panels& directions, std::int64_t padded,
                     double* sums) {
  alignas(64) float tile[kMaxTileRows * kMaxTileColumns];
  const std::int64_t columns = kernel.panels * kPanelWidth, depth = directions.depth;
  std::fill_n(sums, kernel.rows * padded, 0.0);
  for (std::int64_t p = 0; p * kPanelWidth < padded; p += kernel.panels) {
    const auto* panel = reinterpret_cast<const float*>(directions.panel(p));
    for (std::int64_t from = 0; from < depth; from += kChunk) {
      kernel.multiply(block + from, depth * 4, panel + from * kPanelWidth, directions.panel_bytes(),
                      std::min(kChunk, depth - from), tile);
      for (std::int64_t r = 0; r < kernel.rows; ++r) {
        double* to = sums + r * padded + p * kPanelWidth;
        for (std::int64_t j = 0; j < columns; ++j) to[j] += tile[r * columns + j];
      }
    }
  }
}

Projections::Projections(Matrix<const float> rows, const Frame& source, const Subspace& subspace, Isa isa, int threads)
    : dims(subspace.dims) {
  resize_for<float>("projections", &values, rows.rows * dims);
  resize_for<float>("projections", &errors, rows.rows);
  resize_for<std::uint8_t>("projections", &held, rows.rows);
  frame.center.assign(static_cast<std::size_t>(dims), 0.0f);
  const TileKernel kernel = tile_kernel(Format::float32, isa);
  const std::int64_t columns = kernel.panels * kPanelWidth, depth = subspace.directions.depth;
  const std::int64_t padded = (dims + columns - 1) / columns * columns;
  const std::int64_t blocks = (rows.rows + kernel.rows - 1) / kernel.rows;
  parallel(threads, blocks, kBlocksAtATime, [&](Items& items) {
    std::vector<float> block(static_cast<std::size_t>(kernel.rows * depth), 0.0f);
    std::vector<double> sums(static_cast<std::size_t>(kernel.rows * padded));
    items.each([&](std::int64_t b) {
      const std::int64_t from = b * kernel.rows, n = std::min<std::int64_t>(kernel.rows, rows.rows - from);
      for (std::int64_t r = 0; r < n; ++r) {
        float* y = &block[r * depth];
        held[from + r] = to_frame(rows.row(from + r), source, y, rows.cols);
        if (held[from + r] == 0) std::fill_n(y, rows.cols, 0.0f);
      }
      multiply_chunks(kernel, block.data(), subspace.directions, padded, sums.data());
      for (std::int64_t r = 0; r < n; ++r) finish(&sums[r * padded], &block[r * depth], subspace, rows.cols, from + r);
    });
  });
}

// With E the error of H [V0'x; 0] per |x|, the length of those coordinates squared is wrong by at most delta |x|^2, delta =
// 2 E + E^2, and so is r^2 = |x|^2 - |V0'x|^2. Hence r is wrong by at most sqrt(delta) |x|, and by delta |x|^2 / r. z is
// 1-Lipschitz: the rounding of x itself, of the sum with r and of the result to float32 adds 8 u |x|. A row that the frame
// holds has coordinates of at most about its norm, and underflow is far below kTiny, which rho holds already.
void Projections::finish(const double* sums, const float* y, const Subspace& subspace, std::int64_t dim,
                         std::int64_t row) {
  double whole = product(y, y, dim), within = 0.0;
  for (std::int64_t j = 0; j < dims; ++j) within += sums[j] * sums[j];
  const double norm = std::sqrt(whole), rest = std::sqrt(std::max(0.0, whole - within));
  for (std::int64_t j = 0; j < dims; ++j)
    values[row * dims + j] = static_cast<float>(sums[j] + rest * static_cast<double>(subspace.rest[j]));
  if (norm == 0.0) return;
  const double delta = subspace.error * (2.0 + subspace.error) + 8.0 * kUnit;
  const double rest_error = delta * whole / std::max(rest, std::sqrt(delta) * norm);
  errors[row] = static_cast<float>(1.01 * (rest_error + (subspace.error + 8.0 * kUnit) * norm));
}

void Projections::widen(RowBounds* bounds) const {
  for (std::size_t i = 0; i < errors.size(); ++i) {
    if (held[i] != 0) {
      bounds->widen(static_cast<std::int64_t>(i), errors[i]);
    } else {
      bounds->slack[i] = kNoScreen;
    }
  }
}

}  // namespace

Subspace leading_subspace(Matrix<const float> rows, const Frame& frame, std::int64_t dims, int threads) {
  Subspace out;
  std::int64_t taken = 0;
  const Vectors sample = centred_sample(rows, frame, &taken);
  const std::int64_t count = std::min({dims - 1, rows.cols, taken});
  Vectors vectors = starting_vectors(sample, taken, count, rows.cols);
  orthonormalise(&vectors, count, rows.cols);
  for (int i = 0; i < kIterations; ++i) {
    iterate(sample, taken, &vectors, count, rows.cols, threads);
    orthonormalise(&vectors, count, rows.cols);
  }
  Vectors last = vectors;
  out.energy = iterate(sample, taken, &last, count, rows.cols, threads);
  out.error = projection_error(defect(vectors, count, rows.cols), dims);
  out.dims = dims;
  vectors.resize(static_cast<std::size_t>(dims * rows.cols), 0.0f);
  share_evenly(&vectors, dims, rows.cols);
  out.rest.assign(static_cast<std::size_t>(dims), 0.0f);
  out.rest.back() = 1.0f;
  share_evenly(&out.rest, dims, 1);
  const Frame origin{std::vector<float>(static_cast<std::size_t>(rows.cols), 0.0f), 1.0f};
  out.directions = pack_rows({vectors.data(), dims, rows.cols}, origin, Format::float32, threads);
  return out;
}

Rows project_rows(Matrix<const float> rows, const Frame& frame, const Subspace& subspace, Format format, Isa isa,
                  int threads, const std::string& scratch) {
  const Projections projected(rows, frame, subspace, isa, threads);
  Rows out = round_rows(projected.rows(), projected.frame, format, threads, scratch);
  projected.widen(&out.bounds);
  return out;
}

Panels project_panels(Matrix<const float> rows, const Frame& frame, const Subspace& subspace, Format format, Isa isa,
                      int threads) {
  const Projections projected(rows, frame, subspace, isa, threads);
  Panels out = pack_rows(projected.rows(), projected.frame, format, threads);
  projected.widen(&out.bounds);
  for (std::int64_t i = 0; i < rows.rows; ++i) out.base[i] = out.bounds.base(i);
  return out;
}

}  // namespace mmad
