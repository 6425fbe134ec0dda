#include "lib/calibration.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <limits>
#include <utility>

#include "lib/failure.hpp"

namespace mmad {
namespace {

constexpr double kUsualRate = 0.01;
constexpr std::int64_t kLeastForTail = 20;
constexpr double kFarthest = 0.1;  // smallest rate that is extrapolated, in parts of the smallest one that is promised
constexpr double kTailShare = 0.1;
constexpr std::int64_t kTailLeast = 10;
constexpr double kJust = 1.0 + 1e-12;  // for rates such as 0.29 with 99 images, whose product is 28.999...
constexpr double kLargestShape = 0.9;  // of a tail that still has a mean
constexpr const char* kReweight[] = {"m3dm", "patchcore", "max", "top"};
constexpr std::int32_t kNeighbors[] = {3, 9, 1, 1};

std::string brief(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

// The sum as NumPy takes it: pairwise, in eight parts below 128 values.
double pairwise_sum(const double* values, std::int64_t n) {
  if (n < 8) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) sum += values[i];
    return sum;
  }
  if (n <= 128) {
    double part[8];
    std::copy_n(values, 8, part);
    std::int64_t i = 8;
    for (; i < n - n % 8; i += 8) {
      for (int j = 0; j < 8; ++j) part[j] += values[i + j];
    }
    double sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    for (; i < n; ++i) sum += values[i];
    return sum;
  }
  const std::int64_t half = n / 2 - n / 2 % 8;
  return pairwise_sum(values, half) + pairwise_sum(values + half, n - half);
}

double mean(const std::vector<double>& values) {
  return pairwise_sum(values.data(), static_cast<std::int64_t>(values.size())) / static_cast<double>(values.size());
}

}  // namespace

HeldOutScores::HeldOutScores(std::vector<double> scores) : scores_(std::move(scores)) {
  std::sort(scores_.begin(), scores_.end());
}

double HeldOutScores::p_value(double score) const {
  if (std::isnan(score)) return score;
  const auto below = std::lower_bound(scores_.begin(), scores_.end(), score) - scores_.begin();
  return static_cast<double>(1 + size() - below) / static_cast<double>(size() + 1);
}

double HeldOutScores::Tail::score_at(double rate) const {
  const double times = share / rate;
  const double factor = shape == 0.0 ? std::log(times) : std::expm1(shape * std::log(times)) / shape;
  return std::min(start + scale * factor, DBL_MAX);
}

// A generalized Pareto distribution by probability-weighted moments, of the largest tenth of the scores.
HeldOutScores::Tail HeldOutScores::tail() const {
  const std::int64_t n = size();
  const std::int64_t k =
      std::max(kTailLeast, static_cast<std::int64_t>(std::ceil(kTailShare * static_cast<double>(n))));
  const double start = scores_[static_cast<std::size_t>(n - k - 1)],
               share = static_cast<double>(k) / static_cast<double>(n + 1);
  int exponent = 0;
  std::frexp(std::max(std::abs(scores_.front()), std::abs(scores_.back())), &exponent);
  const double unit = std::ldexp(1.0, std::min(exponent, 1023));  // exact; nothing overflows in it
  std::vector<double> excess(static_cast<std::size_t>(k)), weighted(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < k; ++i) {
    const auto at = static_cast<std::size_t>(i);
    excess[at] = scores_[static_cast<std::size_t>(n - k + i)] / unit - start / unit;
    weighted[at] = (1.0 - (static_cast<double>(i + 1) - 0.35) / static_cast<double>(k)) * excess[at];
  }
  const double first = mean(excess), second = mean(weighted);
  if (first <= 0.0) return {start, 0.0, 0.0, share};
  double shape = 2.0 - first / std::max(first - 2.0 * second, 1e-12 * first);
  shape = std::min(std::max(shape, 0.0), kLargestShape);
  return {start, std::min(first * (1.0 - shape) * unit, DBL_MAX), shape, share};
}

mmad_threshold HeldOutScores::threshold(double rate) const {
  const double wanted = rate == 0.0 ? std::max(kUsualRate, smallest_rate()) : rate;
  expect_argument(wanted > 0.0 && wanted < 1.0,
                  "rate: expected a number above 0 and below 1, such as 0.01, found " + brief(rate));
  const double count = static_cast<double>(size() + 1);
  const auto k = static_cast<std::int64_t>(std::floor(wanted * count * kJust));
  if (k >= 1) return {scores_[static_cast<std::size_t>(size() - std::min(k, size()))], wanted, 0};
  if (size() < kLeastForTail) {
    throw Failure(MMAD_ERROR_ARGUMENT, "rate: expected at least 1/(n + 1) = " + brief(smallest_rate()) + " with " +
                                           std::to_string(size()) + " held-out images, or " +
                                           std::to_string(kLeastForTail) + " of them to extrapolate from, found " +
                                           brief(rate));
  }
  expect_argument(wanted * kJust >= smallest_rate() * kFarthest,
                  "rate: expected at least " + brief(smallest_rate() * kFarthest) + ", a tenth of the 1/(n + 1) that " +
                      std::to_string(size()) + " held-out images can promise, found " + brief(rate));
  return {std::max(scores_.back(), tail().score_at(wanted)), wanted, 1};
}

mmad_rule checked_rule(const mmad_rule* rule) {
  mmad_rule out = rule == nullptr ? mmad_rule{MMAD_REWEIGHT_M3DM, 0, 1.0} : *rule;
  expect_argument(out.reweight >= MMAD_REWEIGHT_M3DM && out.reweight <= MMAD_REWEIGHT_TOP,
                  "rule: expected a reweight of 0 to 3, found " + std::to_string(out.reweight));
  if (out.n_neighbors == 0) out.n_neighbors = kNeighbors[out.reweight];
  const std::int32_t least = out.reweight == MMAD_REWEIGHT_M3DM ? 2 : 1;
  expect_argument(out.n_neighbors >= least,
                  "rule: expected n_neighbors of at least " + std::to_string(least) + " (" +
                      (least == 2 ? "m3dm needs a neighbour besides m* itself" : "m* itself counts") + "), found " +
                      std::to_string(out.n_neighbors));
  if (out.divisor == 0.0) out.divisor = 1.0;
  expect_argument(out.divisor > 0.0 && std::isfinite(out.divisor),
                  "rule: expected a divisor that is a finite number above 0, found " + brief(out.divisor));
  return out;
}

BankCalibration read_calibration(const Manifest& header, std::vector<double> images, std::vector<double> peaks) {
  const auto finite = [](const std::vector<double>& all) {
    return std::all_of(all.begin(), all.end(), [](double one) { return std::isfinite(one); });
  };
  const auto n = static_cast<std::size_t>(header.integer("images", 1));
  if (images.size() != n || peaks.size() != n) header.wrong("images", "as many as scores", header.find("images"));
  const std::string origin = header.text("origin"), reweight = header.text("reweight");
  mmad_rule rule{0, 0, 0.0};
  const auto* found = std::find(std::begin(kReweight), std::end(kReweight), reweight);
  if (found == std::end(kReweight)) header.wrong("reweight", "m3dm, patchcore, max or top", header.find("reweight"));
  rule.reweight = static_cast<std::int32_t>(found - kReweight);
  rule.n_neighbors = static_cast<std::int32_t>(header.integer(
      "n_neighbors", rule.reweight == MMAD_REWEIGHT_M3DM ? 2 : 1, std::numeric_limits<std::int32_t>::max()));
  rule.divisor = header.number("divisor");
  if (!(rule.divisor > 0.0)) header.wrong("divisor", "a number above 0", header.find("divisor"));
  for (const Manifest& one : header.tables("patch_quantiles")) {
    one.number("share");
    one.number("score");
  }
  const bool outdated = header.truth("outdated");
  if (!finite(images) || !finite(peaks)) header.wrong("images", "finite scores", nullptr);
  const std::int64_t patches = header.integer("patches", 1);
  return {HeldOutScores(std::move(images)), HeldOutScores(std::move(peaks)), rule, patches, outdated, origin};
}

}  // namespace mmad
