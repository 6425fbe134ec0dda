// Scores of images, as mmad_bank/bank/scores.py and mmad_bank/scoring.py compute them.
#pragma once

#include <cstdint>

#include "lib/bank.hpp"

namespace mmad {

struct ScoreOutputs {
  float* patch;           // (images, patches)
  float* image;           // (images)
  std::int64_t* nearest;  // (images, patches)
};

// `rows` are images * patches finite rows of the bank's length, the rule is checked. Any output may be null.
void score_images(Bank& bank, const float* rows, std::int64_t images, std::int64_t patches, const mmad_rule& rule,
                  int threads, const ScoreOutputs& out);

}  // namespace mmad
