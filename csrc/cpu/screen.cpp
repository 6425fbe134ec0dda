#include "cpu/screen.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/clones.hpp"
#include "cpu/parallel.hpp"
#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr double kUnit = 1.0 / (1 << 24);
// Below this share a full product is computed for whole tiles anyway; on white noise the coarse level would only cost.
constexpr double kWorthwhileEnergy = 0.75;
constexpr double kSplit = 1e-3;  // t in coarse_rows()
constexpr std::int64_t kLeastDim = 192;
constexpr std::int64_t kBlocksAtATime = 4;  // blocks of rows that a thread projects at a time
// Computing a pair from the original rows waits for memory: beyond this many, the whole tile is cheaper.
constexpr int kPairsWorthATile = 6;

bool screen_tile(const Level& level, const std::uint8_t* rows, std::int64_t row_bytes, const RowTerms* terms, int n,
                 const Panels& panels, std::int64_t panel, TileResult* result) {
  alignas(64) float accumulators[kMaxTileRows * kMaxTileColumns];
  level.kernel.multiply(rows, row_bytes, panels.panel(panel), panels.panel_bytes(), panels.depth, accumulators);
  const ColumnTerms columns = column_terms(panels, panel * kPanelWidth);
  return level.kernel.screen(accumulators, n, terms, columns, result->lower, result->passed);
}

MMAD_CLONES double squared_norm(const float* y, std::int64_t dim) {
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < dim; ++i) sum += static_cast<double>(y[i]) * y[i];
  return sum;
}

// Rows in the coordinates of the leading directions.
struct Projections {
  std::int64_t dims;
  std::vector<float> values, slack;  // slack: what the projection adds to the half-width of the intervals
  Frame frame;                       // frame of the projections, which are scaled already

  Projections(Matrix<const float> rows, const ScreenSpace& space, int threads);
  Matrix<const float> rows() const { return {values.data(), static_cast<std::int64_t>(slack.size()), dims}; }
};

}  // namespace

ScreenSpace::ScreenSpace(Matrix<const float> rows, Format packed_format, Isa isa_, bool coarse)
    : frame(screening_frame(rows)), packed(packed_format), isa(isa_) {
  if (coarse && rows.cols >= kLeastDim) subspace = leading_subspace(rows, frame);
  if (subspace.energy < kWorthwhileEnergy) subspace.dims = 0;
}

ScreenRows::ScreenRows(Matrix<const float> rows, const ScreenSpace& space, int threads)
    : full(round_rows(rows, space.frame, space.rows_format(), threads)) {
  if (!space.coarse()) return;
  const Projections projected(rows, space, threads);
  coarse = round_rows(projected.rows(), projected.frame, space.rows_format(), threads);
  for (std::int64_t i = 0; i < rows.rows; ++i) coarse.bounds.slack[i] += projected.slack[i];
}

void ScreenPanels::reserve(std::int64_t rows, std::int64_t dim, const ScreenSpace& space) {
  full.reserve(rows, dim, space.packed);
  if (space.coarse()) coarse.reserve(rows, space.subspace.dims, space.packed);
}

void ScreenPanels::append(const ScreenRows& rows, std::int64_t row) {
  full.append(rows.full, row);
  if (coarse.dim > 0) coarse.append(rows.coarse, row);
}

ScreenPanels::ScreenPanels(Matrix<const float> rows, const ScreenSpace& space, int threads)
    : full(pack_rows(rows, space.frame, space.packed, threads)) {
  if (!space.coarse()) return;
  const Projections projected(rows, space, threads);
  coarse = pack_rows(projected.rows(), projected.frame, space.packed, threads);
  for (std::int64_t i = 0; i < rows.rows; ++i) {
    coarse.bounds.slack[i] += projected.slack[i];
    coarse.base[i] = coarse.bounds.squared[i] - coarse.bounds.slack[i];
  }
}

RowTerms Level::terms(const RowBounds& rows, std::int64_t i, double limit) const {
  const float norm = rows.norm[i];
  return {2.0f * rows.scale[i], 2.0f * (rows.residual[i] + gamma * norm), 2.0f * norm, threshold(rows, i, limit)};
}

// A tile's lower bounds leave out |x|^2 and the row's own slack.
float Level::threshold(const RowBounds& rows, std::int64_t i, double limit) const {
  if (limit < 0.0) return -std::numeric_limits<float>::infinity();
  const double value = reach(limit) - rows.squared[i] + rows.slack[i];
  return std::nextafter(static_cast<float>(value), std::numeric_limits<float>::infinity());
}

RowBlock::RowBlock(const Screen& screen, const ScreenRows& rows, std::int64_t capacity)
    : rows_(rows),
      first_(screen.first(rows)),
      level_(screen.first()),
      values_(static_cast<std::size_t>((capacity + kSpareRows) * first_.row_bytes())),
      tile_(static_cast<std::size_t>(kMaxTileRows * rows.full.row_bytes())),
      terms_(static_cast<std::size_t>(capacity)),
      limits_(static_cast<std::size_t>(capacity)) {
  list_.reserve(static_cast<std::size_t>(capacity));
}

void RowBlock::add(std::int64_t i, double limit) {
  const std::int64_t r = size();
  list_.push_back(i);
  std::copy_n(first_.row(i), first_.row_bytes(), value(r));
  terms_[r] = level_.terms(first_.bounds, i, limit);
  limits_[r] = limit;
}

void RowBlock::set_limit(std::int64_t r, double limit) {
  limits_[r] = limit;
  terms_[r].threshold = level_.threshold(first_.bounds, list_[r], limit);
}

double RowBlock::left_over() {
  const double share = tiles_ > 0.0 ? left_over_ / tiles_ : 0.0;
  tiles_ = left_over_ = 0.0;
  return share;
}

void RowBlock::move(std::int64_t from, std::int64_t to) {
  if (from == to) return;
  std::copy_n(value(from), first_.row_bytes(), value(to));
  list_[to] = list_[from];
  terms_[to] = terms_[from];
  limits_[to] = limits_[from];
}

Screen::Screen(const ScreenSpace& space, std::int64_t dim, bool use_coarse)
    : per_unit_(1.0 / space.unit()),
      use_coarse_(use_coarse && space.coarse()),
      gathers_(use_coarse_ && space.packed == Format::fixed8) {
  full_ = {tile_kernel(space.packed, space.isa), accumulation_error(space.rows_format(), dim + kDepthStep),
           space.unit()};
  coarse_ = {full_.kernel, accumulation_error(space.rows_format(), space.subspace.dims + kDepthStep),
             space.subspace.stretch * (1.0 + kSplit) * space.unit()};
}

ColumnTerms column_terms(const Panels& panels, std::int64_t column) {
  return {panels.base.data() + column, panels.bounds.scale.data() + column, panels.bounds.norm.data() + column,
          panels.bounds.residual.data() + column};
}

bool Screen::tile(RowBlock* block, std::int64_t r, int n, const ScreenPanels& panels, std::int64_t panel,
                  TileResult* result) const {
  const RowTerms* terms = &block->terms_[r];
  const std::int64_t bytes = block->first_.row_bytes();
  result->full = !use_coarse_;
  result->count = n;
  std::iota(result->r, result->r + n, r);
  if (!use_coarse_) return screen_tile(full_, block->value(r), bytes, terms, n, panels.full, panel, result);
  block->tiles_ += 1.0;
  if (!screen_tile(coarse_, block->value(r), bytes, terms, n, panels.coarse, panel, result)) return false;
  if (gathers_) {
    gather(block, *result);
    return false;
  }
  int pairs = 0;
  for (int i = 0; i < n; ++i) pairs += __builtin_popcount(result->passed[i]);
  block->left_over_ += std::min(1.0, static_cast<double>(pairs) / kPairsWorthATile);
  return pairs <= kPairsWorthATile || tile_full(block, panels.full, panel, result);
}

// Columns of 8 bits are there for the sake of memory, so the original rows, which may be in a file, are not read for
// pairs that the rounded rows rule out. A panel is interleaved: one pair would read all of it. So all rows of the block
// that have a pair in the panels are gathered into full tiles (twice as fast as completing each coarse tile by itself,
// and two to three times as fast as single pairs, where one row in ten to one in three is left).
void Screen::gather(RowBlock* block, const TileResult& result) const {
  for (int i = 0; i < result.count; ++i) {
    if (result.passed[i] == 0) continue;
    block->waiting_.push_back({result.r[i], result.passed[i]});
    block->left_over_ += 1.0 / tile_rows();
  }
}

bool Screen::rest(RowBlock* block, const ScreenPanels& panels, std::int64_t panel, TileResult* result) const {
  while (!block->waiting_.empty()) {
    if (tile_waiting(block, panels.full, panel, result)) return true;
  }
  return false;
}

// The last rows that wait, at most a tile of them. Each level's lower bound holds by itself, so a pair must pass both.
bool Screen::tile_waiting(RowBlock* block, const Panels& panels, std::int64_t panel, TileResult* result) const {
  std::uint32_t passed[kMaxTileRows];
  const std::size_t n = std::min(block->waiting_.size(), static_cast<std::size_t>(tile_rows()));
  const auto* waiting = block->waiting_.data() + (block->waiting_.size() - n);
  result->count = static_cast<int>(n);
  for (std::size_t i = 0; i < n; ++i) {
    result->r[i] = waiting[i].r;
    passed[i] = waiting[i].passed;
  }
  block->waiting_.resize(block->waiting_.size() - n);
  if (!tile_full(block, panels, panel, result)) return false;
  for (std::size_t i = 0; i < n; ++i) result->passed[i] &= passed[i];
  return true;
}

// Whole rows of the block against whole columns, for the rows that result->r lists.
bool Screen::tile_full(RowBlock* block, const Panels& panels, std::int64_t panel, TileResult* result) const {
  const Rows& rows = block->rows_.full;
  RowTerms terms[kMaxTileRows];
  for (int i = 0; i < result->count; ++i) {
    const std::int64_t row = block->list_[result->r[i]];
    std::copy_n(rows.row(row), rows.row_bytes(), block->tile_.data() + i * rows.row_bytes());
    terms[i] = full_.terms(rows.bounds, row, block->limits_[result->r[i]]);
  }
  result->full = true;
  return screen_tile(full_, block->tile_.data(), rows.row_bytes(), terms, result->count, panels, panel, result);
}

Interval Screen::interval(const RowBlock& block, std::int64_t r, const Panels& full, std::int64_t column,
                          float lower) const {
  const RowBounds& rows = block.rows_.full.bounds;
  const std::int64_t i = block.list_[r];
  const double norm = rows.norm[i], column_norm = full.bounds.norm[column];
  const double error = 2.0 * (rows.residual[i] + full_.gamma * norm) * column_norm +
                       2.0 * norm * full.bounds.residual[column] + full.bounds.slack[column] + rows.slack[i];
  const double low = static_cast<double>(lower) + rows.squared[i] - rows.slack[i];
  return {low * per_unit_, (low + 2.0 * error) * per_unit_};
}

namespace {

MMAD_CLONES float squared_distance_float(const float* a, const float* b, std::int64_t dim) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < dim; ++i) {
    const float difference = a[i] - b[i];
    sum += difference * difference;
  }
  return sum;
}

// Each of the positive terms and each addition errs by u: computed = true (1 + d) with |d| <= n u / (1 - n u), n = dim + 4.
// With g = (dim + 8) u the true value lies in [computed (1 - g), computed (1 - g) / (1 - 2 g)]. A sum that overflowed says
// nothing, nor one near underflow, where each of up to 2^24 squares may have lost 2^-126; nor do longer rows.
bool float_suffices(float squared, double g) { return std::isfinite(squared) && squared >= 0x1p-70f && g < 0.25; }

double float_error(std::int64_t dim) { return static_cast<double>(dim + 8) * kUnit; }

}  // namespace

Interval squared_distance_interval(const float* a, const float* b, std::int64_t dim) {
  const double g = float_error(dim);
  const float squared = squared_distance_float(a, b, dim);
  if (float_suffices(squared, g)) return {squared * (1.0 - g), squared * (1.0 - g) / (1.0 - 2.0 * g)};
  const double exact = squared_distance(a, b, dim);
  return {exact, exact};
}

double squared_distance_within(const float* a, const float* b, std::int64_t dim, double limit) {
  if (std::isfinite(limit)) {
    const double g = float_error(dim);
    const float squared = squared_distance_float(a, b, dim);
    if (float_suffices(squared, g) && squared * (1.0 - g) > limit) return std::numeric_limits<double>::infinity();
  }
  const double squared = squared_distance(a, b, dim);
  return squared <= limit ? squared : std::numeric_limits<double>::infinity();
}

namespace {

// y = V'(x - c) in float32. Each coordinate is an inner product of D terms with a unit vector, so the computed y differs
// from the true one by at most err = gamma sqrt(dims) |x - c|. What is screened is the computed y. A true distance
// below L means |y_a - y_b| <= sqrt(L stretch) + err_a + err_b, and for any t > 0, (u + v)^2 <= (1 + t) u^2 +
// (1 + 1/t) v^2: the limit is stretched by 1 + t, and each side adds 2 (1 + 1/t) err^2 to its slack. Underflow is far
// below kTiny, which the slack holds already. Directions are of length 1 within rounding, so a row that the frame holds
// has a projection of at most sqrt(dims) <= 8 times its norm, which float32 and kLargestNorm hold.
Projections::Projections(Matrix<const float> rows, const ScreenSpace& space, int threads) : dims(space.subspace.dims) {
  resize_for<float>("projections", &values, rows.rows * dims);
  resize_for<float>("projections", &slack, rows.rows);
  frame.center.assign(static_cast<std::size_t>(dims), 0.0f);
  const Subspace& subspace = space.subspace;
  const TileKernel kernel = tile_kernel(Format::float32, space.isa);
  const std::int64_t columns = kernel.panels * kPanelWidth, depth = subspace.directions.depth;
  const std::int64_t padded = (subspace.dims + columns - 1) / columns * columns;
  const double gamma = 1.01 * std::expm1(static_cast<double>(rows.cols + 4) * kUnit) *
                       std::sqrt(static_cast<double>(subspace.dims) * subspace.stretch);
  const std::int64_t blocks = (rows.rows + kernel.rows - 1) / kernel.rows;
  parallel(threads, blocks, kBlocksAtATime, [&](Items& items) {
    std::vector<float> block(static_cast<std::size_t>(kernel.rows * depth), 0.0f);
    std::vector<float> products(static_cast<std::size_t>(kernel.rows * padded));
    alignas(64) float tile[kMaxTileRows * kMaxTileColumns];
    items.each([&](std::int64_t b) {
      const std::int64_t from = b * kernel.rows, n = std::min<std::int64_t>(kernel.rows, rows.rows - from);
      for (std::int64_t r = 0; r < n; ++r) {
        float* y = &block[r * depth];
        if (to_frame(rows.row(from + r), space.frame, y, rows.cols)) {
          const double norm = std::sqrt(squared_norm(y, rows.cols));
          const auto error = static_cast<float>(gamma * norm);
          slack[from + r] = static_cast<float>(2.01 * (1.0 + 1.0 / kSplit)) * error * error;
        } else {
          std::fill_n(y, rows.cols, 0.0f);
          slack[from + r] = kNoScreen;
        }
      }
      for (std::int64_t p = 0; p * kPanelWidth < padded; p += kernel.panels) {
        kernel.multiply(block.data(), depth * 4, subspace.directions.panel(p), subspace.directions.panel_bytes(), depth,
                        tile);
        for (std::int64_t r = 0; r < n; ++r) {
          std::copy_n(tile + r * columns, columns, &products[r * padded + p * kPanelWidth]);
        }
      }
      for (std::int64_t r = 0; r < n; ++r) {
        std::copy_n(&products[r * padded], dims, &values[(from + r) * dims]);
      }
    });
  });
}

}  // namespace
}  // namespace mmad
