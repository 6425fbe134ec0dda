// How a bank is screened in a search: on one level, or on two.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/findings.hpp"
#include "cpu/parallel.hpp"
#include "cpu/screen.hpp"
#include "mmad/knn.hpp"

namespace mmad {

// Queries [from, to) against panels [first, last) of the level that comes first.
struct Part {
  std::int64_t from, to, first, last;
};

class SearchLevels {
 public:
  virtual ~SearchLevels() = default;

  virtual ScreenRows round(Matrix<const float> queries, int threads) const = 0;
  // `findings` and limits start with query part.from.
  virtual void scan(Matrix<const float> queries, const ScreenRows& rows, const Part& part, Findings* findings,
                    Items& items) const = 0;

  virtual const TileKernel& kernel() const = 0;
  virtual std::int64_t panels() const = 0;
  virtual std::int64_t row_bytes() const = 0;  // of the level that comes first
  virtual std::int64_t nbytes() const = 0;
};

// The whole rows in one format.
std::unique_ptr<SearchLevels> one_level(Matrix<const float> bank, Format format, Isa isa, int threads);

// Bytes on both levels: first coordinates in a subspace, `dims` of them, then whole rows, for the pairs that are left.
std::unique_ptr<SearchLevels> two_levels(Matrix<const float> bank, std::int64_t dims, Isa isa, int threads);

// What the whole rows of a bank and of queries tell about a pair, and what is made of it.
class WholeRows {
 public:
  WholeRows(Matrix<const float> bank, const Frame& frame, Format format, Isa isa);

  // The squared distance of query q and a row of the bank, from the lower bound that TileKernel::screen has computed with
  // these terms.
  Interval squared_distance(Matrix<const float> queries, const RowBounds& rows, std::int64_t q, const RowTerms& terms,
                            const RowBounds& columns, std::int64_t row, float lower) const;
  // The pair is in reach.
  void take(Matrix<const float> queries, const RowBounds& rows, std::int64_t q, const RowTerms& terms,
            const RowBounds& columns, std::int64_t row, float lower, Findings* findings) const;

  Matrix<const float> bank;
  Level level;

 private:
  Interval interval(const RowBounds& rows, std::int64_t q, const RowTerms& terms, const RowBounds& columns,
                    std::int64_t row, float lower) const;
};

// Brings the panels that come next from memory, a share with every tile of the ones in hand: a panel is used by one block
// of queries and then not for long.
class PanelsAhead {
 public:
  PanelsAhead(const Panels& panels, std::int64_t step, std::int64_t tiles)
      : next_(nullptr),
        end_(panels.values.data() + panels.values.size()),
        share_(step / std::max<std::int64_t>(tiles, 1) + kCacheLine) {}

  void start(const std::uint8_t* at) { next_ = at; }
  void fetch() {
    const std::uint8_t* upto = std::min(next_ + share_, end_);
    for (; next_ < upto; next_ += kCacheLine) __builtin_prefetch(next_, 0, 2);
  }

 private:
  static constexpr std::int64_t kCacheLine = 64;
  const std::uint8_t *next_, *end_;
  std::int64_t share_;
};

}  // namespace mmad
