#include "cpu/screen.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/clones.hpp"

namespace mmad {
namespace {

constexpr double kUnit = 1.0 / (1 << 24);
// Below this share a full product is computed for whole tiles anyway; on white noise the coarse level would only cost.
constexpr double kWorthwhileEnergy = 0.75;
constexpr std::int64_t kCoarseDims = 64;
constexpr std::int64_t kLeastDim = 192;
// Computing a pair from the original rows waits for memory: beyond this many, the whole tile is cheaper.
constexpr int kPairsWorthATile = 6;

bool screen_tile(const Level& level, const std::uint8_t* rows, std::int64_t row_bytes, const RowTerms* terms, int n,
                 const Panels& panels, std::int64_t panel, TileResult* result) {
  alignas(64) float accumulators[kMaxTileRows * kMaxTileColumns];
  level.kernel.multiply(rows, row_bytes, panels.panel(panel), panels.panel_bytes(), panels.depth, accumulators);
  const ColumnTerms columns = column_terms(panels, panel * kPanelWidth);
  return level.kernel.screen(accumulators, n, terms, columns, result->lower, result->passed);
}

}  // namespace

ScreenSpace::ScreenSpace(Matrix<const float> rows, Format packed_format, Isa isa_, bool coarse, int threads)
    : frame(screening_frame(rows)), packed(packed_format), isa(isa_) {
  if (coarse && rows.cols >= kLeastDim) subspace = leading_subspace(rows, frame, kCoarseDims, threads);
  if (subspace.energy < kWorthwhileEnergy) subspace.dims = 0;
}

ScreenRows::ScreenRows(Matrix<const float> rows, const ScreenSpace& space, int threads, const std::string& scratch)
    : full(round_rows(rows, space.frame, space.rows_format(), threads, scratch)) {
  if (!space.coarse()) return;
  coarse = project_rows(rows, space.frame, space.subspace, space.rows_format(), space.isa, threads, scratch);
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
  if (space.coarse()) coarse = project_panels(rows, space.frame, space.subspace, space.packed, space.isa, threads);
}

double Level::reach(const RowBounds& rows, std::int64_t i, double limit) const {
  return (std::sqrt(framed(limit)) + rows.residual[i]) * (1.0 + 4.0 * kUnit);
}

RowTerms Level::terms(const RowBounds& rows, std::int64_t i, double limit) const {
  RowTerms terms{2.0f * rows.scale[i], 0.0f, 0.0f, 0.0f, rows.offset.empty() ? 0 : rows.offset[i]};
  set_limit(rows, i, limit, &terms);
  return terms;
}

// A tile's lower bounds leave out the row's square and its slack. For a column like the row itself the triangle inequality
// allows 4 L rho more than L^2, and Cauchy-Schwarz 4 N rho.
void Level::set_limit(const RowBounds& rows, std::int64_t i, double limit, RowTerms* terms) const {
  terms->norm_factor = 2.0f * gamma * rows.norm[i];
  terms->residual_factor = 0.0f;
  terms->threshold = limit < 0.0 ? -std::numeric_limits<float>::infinity() : static_cast<float>(kReach);
  if (limit < 0.0 || limit * unit >= kReach) return;
  const double within = reach(rows, i, limit), norm = rows.norm[i];
  const bool close = within <= norm || !by_product;
  if (!close) terms->norm_factor += 2.0f * rows.residual[i];
  const double threshold = close ? within * within - rows.rounded[i] : framed(limit) - rows.squared[i];
  terms->residual_factor = static_cast<float>(2.0 * (close ? within : norm));
  terms->threshold =
      std::nextafter(static_cast<float>(threshold + rows.slack[i]), std::numeric_limits<float>::infinity());
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
  level_.set_limit(first_.bounds, list_[r], limit, &terms_[r]);
}

void RowBlock::move(std::int64_t from, std::int64_t to) {
  if (from == to) return;
  std::copy_n(value(from), first_.row_bytes(), value(to));
  list_[to] = list_[from];
  terms_[to] = terms_[from];
  limits_[to] = limits_[from];
}

Screen::Screen(const ScreenSpace& space, std::int64_t dim) : use_coarse_(space.coarse()) {
  full_ = {tile_kernel(space.packed, space.isa), accumulation_error(space.packed, dim + kDepthStep),
           space.frame.unit()};
  coarse_ = {full_.kernel, accumulation_error(space.packed, space.subspace.dims + kDepthStep), space.frame.unit(),
             false};
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
  if (!use_coarse_) return screen_tile(full_, block->value(r), bytes, terms, n, panels.full, panel, result);
  if (!screen_tile(coarse_, block->value(r), bytes, terms, n, panels.coarse, panel, result)) return false;
  int pairs = 0;
  for (int i = 0; i < n; ++i) pairs += __builtin_popcount(result->passed[i]);
  return pairs <= kPairsWorthATile || tile_full(block, r, n, panels.full, panel, result);
}

// Whole rows of the block against whole columns.
bool Screen::tile_full(RowBlock* block, std::int64_t r, int n, const Panels& panels, std::int64_t panel,
                       TileResult* result) const {
  const Rows& rows = block->rows_.full;
  RowTerms terms[kMaxTileRows];
  for (int i = 0; i < n; ++i) {
    const std::int64_t row = block->list_[r + i];
    std::copy_n(rows.row(row), rows.row_bytes(), block->tile_.data() + i * rows.row_bytes());
    terms[i] = full_.terms(rows.bounds, row, block->limits_[r + i]);
  }
  result->full = true;
  return screen_tile(full_, block->tile_.data(), rows.row_bytes(), terms, n, panels, panel, result);
}

bool screen_tile(const Level& level, const Rows& rows, std::int64_t row, const RowTerms* terms, int n,
                 const Panels& panels, std::int64_t panel, TileResult* result) {
  return screen_tile(level, rows.row(row), rows.row_bytes(), terms, n, panels, panel, result);
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

}  // namespace mmad
