// The better of two iterates, per sample.
#pragma once

#include "common/config.h"

namespace ard {

// B batch, E elements per sample; samples follow one another in memory.
struct SelectParams {
  float* best;             // [B, E] updated in place
  const float* candidate;  // [B, E] memory order of best
  const float* best_loss;  // [B]
  const float* loss;       // [B] of the candidate
  float* best_loss_out;    // [B] shares no memory with the other two
  int64_t batch;
  int64_t sample_numel;  // E
  bool lower;            // the lower loss wins
};

// Whether a candidate's loss beats the best one: never when it is NaN, always when only the best
// is.
ARD_HD bool loss_wins(float loss, float best, bool lower) {
  if (loss != loss) return false;
  if (best != best) return true;
  return lower ? loss < best : loss > best;
}

namespace cpu {

// Samples [begin, end).
void select_best(const SelectParams& p, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

void launch_select_best(const SelectParams& p, Stream stream);

}  // namespace cuda

}  // namespace ard
