// Screening of pairs: which of many squared distances can be at or below a limit.
//
// Two levels. The full level multiplies whole rows in a narrow format. The coarse level multiplies their coordinates in a
// subspace of a few leading directions of the data (subspace.hpp), in which distances are never longer than they are, so
// it can rule a pair out for good, and on features of real networks, whose variance lies in few directions, it rules out
// nearly all. What passes is computed from the original rows by the caller. The levels never change an answer.
//
// Selection works with both levels as they are here; the search has a coarse level of its own (two_levels.cpp).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cpu/subspace.hpp"
#include "cpu/tile.hpp"
#include "mmad/matrix.hpp"
#include "mmad/operand.hpp"

namespace mmad {

// Space in which rows are screened: the frame and the directions that both sides of a pair share.
struct ScreenSpace {
  Frame frame;
  Subspace subspace;  // dims = 0: full level only
  Format packed = Format::float32;
  Isa isa = Isa::generic;

  ScreenSpace(Matrix<const float> rows, Format packed_format, Isa isa, bool coarse, int threads);
  Format rows_format() const { return row_format(packed, isa); }
  bool coarse() const { return subspace.dims > 0; }
};

struct ScreenRows {
  Rows full, coarse;

  ScreenRows(Rows full_rows, Rows coarse_rows) : full(std::move(full_rows)), coarse(std::move(coarse_rows)) {}
  // Values go to files in `scratch` if it is not empty.
  ScreenRows(Matrix<const float> rows, const ScreenSpace& space, int threads, const std::string& scratch = {});
};

// Both levels have one format.
struct ScreenPanels {
  Panels full, coarse;

  ScreenPanels() = default;
  ScreenPanels(Matrix<const float> rows, const ScreenSpace& space, int threads);
  void reserve(std::int64_t rows, std::int64_t dim, const ScreenSpace& space);
  void append(const ScreenRows& rows, std::int64_t row);
  std::int64_t count() const { return full.count; }
};

constexpr double kReach = 0x1p127;  // above every lower bound; a float32

// One level's arithmetic.
struct Level {
  TileKernel kernel;
  float gamma;  // relative error of an accumulated product
  double unit;  // from true squared distances to the frame's
  // Whether Cauchy-Schwarz may tell: it takes rows as they are, and coordinates in a subspace are off by an error.
  bool by_product = true;

  // The squared distance `limit` in the frame.
  double framed(double limit) const { return std::min(limit * unit, kReach); }
  // a = L + rho (operand.hpp).
  double reach(const RowBounds& rows, std::int64_t i, double limit) const;
  // Without a limit, infinity, everything passes, and lower bounds are the squared distances of rounded rows but for the
  // slacks and the accumulation.
  RowTerms terms(const RowBounds& rows, std::int64_t i, double limit) const;
  void set_limit(const RowBounds& rows, std::int64_t i, double limit, RowTerms* terms) const;
};

// Rows gathered for the first level of screening; each has a limit.
class RowBlock {
 public:
  RowBlock(const class Screen& screen, const ScreenRows& rows, std::int64_t capacity);

  void add(std::int64_t i, double limit);
  void set_limit(std::int64_t r, double limit);
  void move(std::int64_t from, std::int64_t to);
  void shrink(std::int64_t size) { list_.resize(static_cast<std::size_t>(size)); }

  std::int64_t size() const { return static_cast<std::int64_t>(list_.size()); }
  std::int64_t index(std::int64_t r) const { return list_[r]; }
  double limit(std::int64_t r) const { return limits_[r]; }

 private:
  friend class Screen;
  std::uint8_t* value(std::int64_t r) { return values_.data() + r * first_.row_bytes(); }

  const ScreenRows& rows_;
  const Rows& first_;
  const Level& level_;
  std::vector<std::uint8_t> values_, tile_;  // tile_: whole rows of the tile in hand, where a second level is needed
  std::vector<RowTerms> terms_;
  std::vector<double> limits_;
  std::vector<std::int64_t> list_;
};

// Result of a tile's screening: bit j of passed[i] is set where the tile's row i and column j may be within the row's
// limit. Where the whole rows were multiplied, lower[] holds the lower bounds of those pairs (TileKernel::screen).
struct TileResult {
  bool full = false;
  std::uint32_t passed[kMaxTileRows];
  alignas(64) float lower[kMaxTileRows * kMaxTileColumns];
};

struct Interval {
  double low, high;
};

class Screen {
 public:
  Screen(const ScreenSpace& space, std::int64_t dim);

  // Screens `n` rows of the block from `r` on, at most tile_rows(), against the panels from `panel` on, panels() of
  // them, and returns whether any pair passed. Columns beyond the panels' count may pass too.
  bool tile(RowBlock* block, std::int64_t r, int n, const ScreenPanels& panels, std::int64_t panel,
            TileResult* result) const;

  // The level that rules most pairs out, and the rows that it multiplies.
  const Level& first() const { return use_coarse_ ? coarse_ : full_; }
  const Rows& first(const ScreenRows& rows) const { return use_coarse_ ? rows.coarse : rows.full; }
  const Panels& first(const ScreenPanels& panels) const { return use_coarse_ ? panels.coarse : panels.full; }
  int tile_rows() const { return full_.kernel.rows; }
  int panels() const { return full_.kernel.panels; }
  int tile_columns() const { return panels() * kPanelWidth; }
  const TileKernel& kernel() const { return full_.kernel; }

 private:
  bool tile_full(RowBlock* block, std::int64_t r, int n, const Panels& panels, std::int64_t panel,
                 TileResult* result) const;

  Level full_, coarse_;
  bool use_coarse_;
};

ColumnTerms column_terms(const Panels& panels, std::int64_t column);

// Screens `n` rows from `row` on on one level.
bool screen_tile(const Level& level, const Rows& rows, std::int64_t row, const RowTerms* terms, int n,
                 const Panels& panels, std::int64_t panel, TileResult* result);

// A squared distance of original rows from differences: an interval from a float32 sum, or the float64 value itself where
// float32 does not hold it.
Interval squared_distance_interval(const float* a, const float* b, std::int64_t dim);
// Value in float64 if it does not exceed `limit`; otherwise infinity, mostly without computing it.
double squared_distance_within(const float* a, const float* b, std::int64_t dim, double limit);

}  // namespace mmad
