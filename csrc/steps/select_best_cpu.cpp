#include "steps/select_best.h"

namespace ard::cpu {

void select_best(const SelectParams& p, int64_t begin, int64_t end) {
  for (int64_t sample = begin; sample < end; ++sample) {
    const bool wins = loss_wins(p.loss[sample], p.best_loss[sample], p.lower);
    p.best_loss_out[sample] = wins ? p.loss[sample] : p.best_loss[sample];
    if (!wins || p.sample_numel == 0 || p.best == p.candidate) continue;
    const int64_t at = sample * p.sample_numel;
    std::memcpy(p.best + at, p.candidate + at, size_t(p.sample_numel) * sizeof(float));
  }
}

}  // namespace ard::cpu
