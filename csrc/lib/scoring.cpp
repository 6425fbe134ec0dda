// Every number has the type that it has in Python: distances and their divisions in float32, the few distances and
// exponentials behind an image's score in float64. PyTorch adds and exponentiates in another order and with other code, so
// the float64 values may differ in their last bits; the float32 score that they are rounded to then is the same unless it
// lies within about 1e-16 of the middle between two numbers.
#include "lib/scoring.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mmad/memory.hpp"

namespace mmad {
namespace {

constexpr std::int64_t kTopOneIn = 100;

constexpr double kWorth = 0.9;  // largest share of rows left for which taking rows apart pays

// The first of all rows that are equal, and for each row which of these it is equal to.
struct Distinct {
  std::vector<std::int64_t> chosen, place;

  explicit Distinct(Matrix<const float> rows) : place(static_cast<std::size_t>(rows.rows)) {
    std::unordered_map<std::string_view, std::int64_t> known;
    for (std::int64_t i = 0; i < rows.rows; ++i) {
      const std::string_view bytes(reinterpret_cast<const char*>(rows.row(i)),
                                   static_cast<std::size_t>(rows.cols) * sizeof(float));
      const auto [at, fresh] = known.emplace(bytes, static_cast<std::int64_t>(chosen.size()));
      if (fresh) chosen.push_back(i);
      place[static_cast<std::size_t>(i)] = at->second;
    }
  }
};

// The nearest vector of each row. An image's patches without a point are equal: they are searched once.
void search_nearest(Bank& bank, Matrix<const float> rows, int threads, float* distances, std::int64_t* nearest) {
  const Distinct distinct(rows);
  const auto count = static_cast<std::int64_t>(distinct.chosen.size());
  if (static_cast<double>(count) > kWorth * static_cast<double>(rows.rows)) {
    bank.search(rows, 1, distances, nearest, threads);
    return;
  }
  std::vector<float> queries, found;
  std::vector<std::int64_t> numbers;
  resize_for("queries", &queries, count * rows.cols);
  resize_for("distances", &found, count);
  resize_for("nearest rows", &numbers, count);
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(rows.row(distinct.chosen[static_cast<std::size_t>(i)]), rows.cols, queries.data() + i * rows.cols);
  }
  bank.search({queries.data(), count, rows.cols}, 1, found.data(), numbers.data(), threads);
  for (std::int64_t i = 0; i < rows.rows; ++i) {
    const auto at = static_cast<std::size_t>(distinct.place[static_cast<std::size_t>(i)]);
    distances[i] = found[at], nearest[i] = numbers[at];
  }
}

double distance(const float* a, const float* b, std::int64_t dim) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < dim; ++i) {
    const double gap = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += gap * gap;
  }
  return std::sqrt(sum);
}

double log_sum_exp(const std::vector<double>& values, std::size_t first) {
  const double largest = *std::max_element(values.begin() + static_cast<std::ptrdiff_t>(first), values.end());
  double sum = 0.0;
  for (std::size_t i = first; i < values.size(); ++i) sum += std::exp(values[i] - largest);
  return largest + std::log(sum);
}

float top_mean(const float* scores, std::int64_t patches) {
  std::vector<float> sorted(scores, scores + patches);
  const std::int64_t count = (patches + kTopOneIn - 1) / kTopOneIn;
  std::partial_sort(sorted.begin(), sorted.begin() + count, sorted.end(), std::greater<float>());
  double sum = 0.0;
  for (std::int64_t i = 0; i < count; ++i) sum += sorted[static_cast<std::size_t>(i)];
  return static_cast<float>(sum / static_cast<double>(count));
}

// m* and its n - 1 nearest others among `found`, the n nearest of m*; m* comes first, also where n copies of it with lower
// row numbers have taken all places.
std::vector<std::int64_t> neighborhood(std::int64_t center, std::vector<std::int64_t> found) {
  if (std::find(found.begin(), found.end(), center) == found.end()) found.back() = center;
  std::stable_partition(found.begin(), found.end(), [center](std::int64_t row) { return row == center; });
  return found;
}

float reweighted(const Bank& bank, const float* patch, float largest, const std::vector<std::int64_t>& around,
                 const mmad_rule& rule) {
  if (around.size() == 1) return rule.divisor == 1.0 ? largest : largest / static_cast<float>(rule.divisor);
  std::vector<double> distances;
  for (const std::int64_t row : around) distances.push_back(distance(bank.vector(row), patch, bank.dim()) / bank.std());
  double exponent = distances[0] / rule.divisor;
  if (rule.reweight == MMAD_REWEIGHT_M3DM) {
    const double scale = std::pow(static_cast<double>(bank.dim()), -0.5);
    for (double& one : distances) one *= scale;
    exponent = exponent * scale - log_sum_exp(distances, 1);
  } else {
    exponent -= log_sum_exp(distances, 0);
  }
  return static_cast<float>(static_cast<double>(largest) / rule.divisor * -std::expm1(std::min(exponent, 0.0)));
}

void reweight(Bank& bank, const float* rows, std::int64_t images, std::int64_t patches, const mmad_rule& rule,
              int threads, const float* scores, const std::int64_t* nearest, float* image) {
  const std::int64_t n = std::min<std::int64_t>(rule.n_neighbors, bank.size());
  std::vector<std::int64_t> worst, centers, found;
  std::vector<float> vectors;
  for (std::int64_t i = 0; i < images; ++i) {
    const float* first = scores + i * patches;
    worst.push_back(i * patches + (std::max_element(first, first + patches) - first));
    centers.push_back(nearest[worst.back()]);
  }
  if (n > 1) {
    resize_for("vectors of the bank", &vectors, images * bank.dim());
    resize_for("neighbours", &found, images * n);
    for (std::int64_t i = 0; i < images; ++i) {
      std::copy_n(bank.vector(centers[static_cast<std::size_t>(i)]), bank.dim(), vectors.data() + i * bank.dim());
    }
    std::vector<float> distances(found.size());
    bank.search({vectors.data(), images, bank.dim()}, n, distances.data(), found.data(), threads);
  }
  for (std::int64_t i = 0; i < images; ++i) {
    const std::int64_t center = centers[static_cast<std::size_t>(i)], at = worst[static_cast<std::size_t>(i)];
    std::vector<std::int64_t> around{center};
    if (n > 1) around = neighborhood(center, {found.begin() + i * n, found.begin() + (i + 1) * n});
    image[i] = reweighted(bank, rows + at * bank.dim(), scores[at], around, rule);
  }
}

}  // namespace

void score_images(Bank& bank, const float* rows, std::int64_t images, std::int64_t patches, const mmad_rule& rule,
                  int threads, const ScoreOutputs& out) {
  const std::int64_t count = images * patches;
  std::vector<float> own_scores;
  std::vector<std::int64_t> own_nearest;
  if (out.patch == nullptr) resize_for("patch scores", &own_scores, count);
  if (out.nearest == nullptr) resize_for("nearest rows", &own_nearest, count);
  float* scores = out.patch == nullptr ? own_scores.data() : out.patch;
  std::int64_t* nearest = out.nearest == nullptr ? own_nearest.data() : out.nearest;
  search_nearest(bank, {rows, count, bank.dim()}, threads, scores, nearest);
  const auto std = static_cast<float>(bank.std());
  if (bank.std() != 1.0) std::transform(scores, scores + count, scores, [std](float one) { return one / std; });
  if (out.image == nullptr) return;
  if (rule.reweight == MMAD_REWEIGHT_M3DM || rule.reweight == MMAD_REWEIGHT_PATCHCORE) {
    reweight(bank, rows, images, patches, rule, threads, scores, nearest, out.image);
    return;
  }
  for (std::int64_t i = 0; i < images; ++i) {
    const float* first = scores + i * patches;
    const float score =
        rule.reweight == MMAD_REWEIGHT_TOP ? top_mean(first, patches) : *std::max_element(first, first + patches);
    out.image[i] = rule.divisor == 1.0 ? score : score / static_cast<float>(rule.divisor);
  }
}

}  // namespace mmad
