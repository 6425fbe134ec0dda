// Scores of held-out normal images, and the limits and p-values that follow; mmad_bank/calibration.py says why.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lib/manifest.hpp"
#include "mmad/mmad.h"

namespace mmad {

class HeldOutScores {
 public:
  explicit HeldOutScores(std::vector<double> scores);  // finite ones, at least one

  std::int64_t size() const { return static_cast<std::int64_t>(scores_.size()); }
  double smallest_rate() const { return 1.0 / static_cast<double>(size() + 1); }
  double p_value(double score) const;
  mmad_threshold threshold(double rate) const;  // 0 takes the usual rate; throws Failure

 private:
  struct Tail {
    double start, scale, shape, share;
    double score_at(double rate) const;
  };
  Tail tail() const;

  std::vector<double> scores_;  // ascending
};

struct BankCalibration {
  HeldOutScores images, peaks;
  mmad_rule rule;
  std::int64_t patches;
  bool outdated;
  std::string origin;
};

// The rule with its defaults filled in; throws Failure.
mmad_rule checked_rule(const mmad_rule* rule);

// Of a header's field `calibration` and the tensors that belong to it; throws Failure.
BankCalibration read_calibration(const Manifest& header, std::vector<double> images, std::vector<double> peaks);

}  // namespace mmad
