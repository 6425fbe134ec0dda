#include "mmad/knn.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/tile.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kQueryBlockBytes = 256 << 10;  // a block of queries stays in the second-level cache
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Candidate {
  float lower;  // of the squared distance, less the terms that depend on the query alone
  std::int64_t row;
};

// The k smallest upper bounds seen so far: no neighbour can be farther than the largest of them.
class UpperBounds {
 public:
  explicit UpperBounds(std::int64_t k = 0) : k_(static_cast<std::size_t>(k)) {}

  void add(float value) {
    if (heap_.size() == k_) {
      if (value >= heap_.front()) return;
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.back() = value;
    } else {
      heap_.push_back(value);
    }
    std::push_heap(heap_.begin(), heap_.end());
  }
  float worst() const { return heap_.size() == k_ ? heap_.front() : kInfinity; }
  const std::vector<float>& values() const { return heap_; }

 private:
  std::size_t k_;
  std::vector<float> heap_;
};

// One query's search over one range of panels.
struct Screening {
  UpperBounds upper;
  std::vector<Candidate> candidates;
  std::size_t compact_at = 512;

  void drop_above(float threshold) {
    const auto beyond = [threshold](const Candidate& c) { return c.lower > threshold; };
    candidates.erase(std::remove_if(candidates.begin(), candidates.end(), beyond), candidates.end());
    compact_at = std::max<std::size_t>(512, 2 * candidates.size());
  }
};

float query_slack(float norm) { return 2.0f * (kSlack * norm * norm + kTiny); }

class Searcher {
 public:
  Searcher(const Panels& panels, const Rows& queries, std::int64_t k, Isa isa)
      : panels_(panels), queries_(queries), k_(k), kernel_(tile_kernel(panels.format, isa)) {
    gamma_ = accumulation_error(queries.format, queries.depth);
  }

  const TileKernel& kernel() const { return kernel_; }

  // Screens queries [from, to) against panels [first, last); `states` has one entry a query of the block.
  void scan(std::int64_t from, std::int64_t to, std::int64_t first, std::int64_t last, Screening* states) const {
    alignas(64) float accumulators[kMaxTileRows * kMaxTileColumns];
    alignas(64) float lower[kMaxTileRows * kMaxTileColumns];
    std::uint32_t passed[kMaxTileRows];
    std::vector<RowTerms> terms = row_terms(from, to);
    for (std::int64_t p = first; p < last; p += kernel_.panels) {
      const std::int64_t column = p * kPanelWidth;
      const ColumnTerms columns{panels_.base.data() + column, panels_.bounds.scale.data() + column,
                                panels_.bounds.norm.data() + column, panels_.bounds.residual.data() + column};
      for (std::int64_t r = from; r < to; r += kernel_.rows) {
        const int rows = static_cast<int>(std::min<std::int64_t>(kernel_.rows, to - r));
        kernel_.multiply(queries_.row(r), queries_.row_bytes(), panels_.panel(p), panels_.panel_bytes(), panels_.depth,
                         accumulators);
        if (kernel_.screen(accumulators, rows, &terms[r - from], columns, lower, passed)) {
          take(rows, passed, lower, column, &terms[r - from], states + (r - from));
        }
      }
    }
  }

  float threshold(std::int64_t query, float worst_upper) const {
    return worst_upper + query_slack(queries_.bounds.norm[query]);
  }

 private:
  std::vector<RowTerms> row_terms(std::int64_t from, std::int64_t to) const {
    std::vector<RowTerms> terms(static_cast<std::size_t>(to - from));
    for (std::int64_t q = from; q < to; ++q) {
      const float norm = queries_.bounds.norm[q];
      terms[q - from] = {2.0f * queries_.bounds.scale[q], 2.0f * (queries_.bounds.residual[q] + gamma_ * norm),
                         2.0f * norm, kInfinity};
    }
    return terms;
  }

  void take(int rows, const std::uint32_t* passed, const float* lower, std::int64_t column, RowTerms* terms,
            Screening* states) const {
    const int width = kernel_.panels * kPanelWidth;
    for (int r = 0; r < rows; ++r) {
      Screening& state = states[r];
      const float fixed = query_slack(terms[r].residual_factor * 0.5f);
      for (std::uint32_t bits = passed[r]; bits != 0; bits &= bits - 1) {
        const int j = __builtin_ctz(bits);
        const float low = lower[r * width + j];
        if (low > terms[r].threshold || column + j >= panels_.count) continue;
        const float norm = panels_.bounds.norm[column + j];
        const float error = terms[r].norm_factor * norm + terms[r].residual_factor * panels_.bounds.residual[column + j] +
                            kSlack * norm * norm + kTiny;
        state.upper.add(low + 2.0f * error);
        state.candidates.push_back({low, column + j});
        terms[r].threshold = state.upper.worst() + fixed;
        if (state.candidates.size() >= state.compact_at) state.drop_above(terms[r].threshold);
      }
    }
  }

  const Panels& panels_;
  const Rows& queries_;
  std::int64_t k_;
  TileKernel kernel_;
  float gamma_;
};

// How the work is cut: blocks of queries, and ranges of the bank where there are fewer blocks than threads.
struct Plan {
  std::int64_t block, blocks, range, ranges;

  Plan(std::int64_t queries, std::int64_t row_bytes, std::int64_t panels, const TileKernel& kernel, int threads) {
    const auto up = [](std::int64_t n, std::int64_t step) { return (n + step - 1) / step * step; };
    const std::int64_t fitting = std::max<std::int64_t>(1, kQueryBlockBytes / row_bytes / kernel.rows) * kernel.rows;
    const std::int64_t tiles = (queries + kernel.rows - 1) / kernel.rows;
    std::int64_t wanted = (queries + fitting - 1) / fitting;
    if (tiles >= 2 * threads) wanted = up(wanted, threads);
    block = up((queries + wanted - 1) / wanted, kernel.rows);
    blocks = (queries + block - 1) / block;
    const std::int64_t cuts = blocks >= threads ? 1 : (threads + blocks - 1) / blocks;
    range = up((panels + cuts - 1) / cuts, kernel.panels);
    ranges = (panels + range - 1) / range;
  }
};

// The contenders of one query, from all ranges of the bank, decided in float64.
class Decision {
 public:
  Decision(Matrix<const float> bank, const float* query, std::int64_t k) : bank_(bank), query_(query), k_(k) {}

  void decide(std::vector<Candidate>* contenders, double query_terms, float* distances, std::int64_t* indices) {
    std::sort(contenders->begin(), contenders->end(),
              [](const Candidate& a, const Candidate& b) { return a.lower < b.lower; });
    best_.clear();
    for (const Candidate& candidate : *contenders) {
      const bool full = static_cast<std::int64_t>(best_.size()) == k_;
      if (full && candidate.lower + query_terms > best_.front().first) break;  // and so for all that follow
      consider({squared_distance(query_, bank_.row(candidate.row), bank_.cols), candidate.row}, full);
    }
    std::sort_heap(best_.begin(), best_.end());
    for (std::int64_t i = 0; i < k_; ++i) {
      distances[i] = static_cast<float>(std::sqrt(best_[i].first));
      indices[i] = best_[i].second;
    }
  }

 private:
  void consider(std::pair<double, std::int64_t> entry, bool full) {
    if (full) {
      if (!(entry < best_.front())) return;
      std::pop_heap(best_.begin(), best_.end());
      best_.back() = entry;
    } else {
      best_.push_back(entry);
    }
    std::push_heap(best_.begin(), best_.end());
  }

  Matrix<const float> bank_;
  const float* query_;
  std::int64_t k_;
  std::vector<std::pair<double, std::int64_t>> best_;  // max-heap by (distance, row)
};

// Joins the ranges' findings: the k-th smallest of all upper bounds is the threshold of all candidates.
std::vector<Candidate> join(const std::vector<Screening*>& parts, std::int64_t k, const Searcher& searcher,
                            std::int64_t query) {
  UpperBounds upper(k);
  for (const Screening* part : parts) {
    for (const float value : part->upper.values()) upper.add(value);
  }
  const float threshold = searcher.threshold(query, upper.worst());
  std::vector<Candidate> contenders;
  for (const Screening* part : parts) {
    for (const Candidate& candidate : part->candidates) {
      if (candidate.lower <= threshold) contenders.push_back(candidate);
    }
  }
  return contenders;
}

}  // namespace

Format screening_format(const std::string& precision, Isa isa) {
  const Format half = isa >= Isa::amx ? Format::bfloat16 : Format::fixed16;
  if (precision == "float32") return Format::float32;
  if (precision == "half") return half;
  if (precision == "int8") return Format::fixed8;
  if (precision == "auto") return isa >= Isa::avx2 ? half : Format::float32;
  throw std::invalid_argument("precision: expected auto, float32, half or int8, found '" + precision + "'");
}

KnnIndex::KnnIndex(Matrix<const float> bank, Format format, Isa isa, int threads)
    : bank_(bank), isa_(isa), center_(robust_center(bank)), panels_(pack_rows(bank, center_.data(), format, threads)) {}

void KnnIndex::search(Matrix<const float> queries, std::int64_t k, float* distances, std::int64_t* indices,
                      int threads) const {
  if (queries.rows == 0) return;
  const Rows rows = round_rows(queries, center_.data(), row_format(panels_.format, isa_ >= Isa::amx), threads);
  const Searcher searcher(panels_, rows, k, isa_);
  const Plan plan(queries.rows, rows.row_bytes(), panels_.panel_count(), searcher.kernel(), threads);
  std::vector<Screening> states(static_cast<std::size_t>(queries.rows * plan.ranges));
  for (Screening& state : states) state.upper = UpperBounds(k);
#pragma omp parallel num_threads(threads)
  {
    searcher.kernel().begin();
#pragma omp for schedule(dynamic) collapse(2)
    for (std::int64_t range = 0; range < plan.ranges; ++range) {
      for (std::int64_t block = 0; block < plan.blocks; ++block) {
        const std::int64_t from = block * plan.block, to = std::min(queries.rows, from + plan.block);
        const std::int64_t first = range * plan.range, last = std::min(panels_.panel_count(), first + plan.range);
        searcher.scan(from, to, first, last, &states[range * queries.rows + from]);
      }
    }
    searcher.kernel().end();
    std::vector<Screening*> parts(static_cast<std::size_t>(plan.ranges));
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t q = 0; q < queries.rows; ++q) {
      for (std::int64_t range = 0; range < plan.ranges; ++range) parts[range] = &states[range * queries.rows + q];
      std::vector<Candidate> contenders = join(parts, k, searcher, q);
      // What a lower bound leaves out: |q|^2 and the query's own slack.
      const double norm = rows.bounds.norm[q];
      const double query_terms = rows.bounds.squared[q] - kSlack * norm * norm - kTiny;
      Decision(bank_, queries.row(q), k).decide(&contenders, query_terms, distances + q * k, indices + q * k);
    }
  }
}

}  // namespace mmad
