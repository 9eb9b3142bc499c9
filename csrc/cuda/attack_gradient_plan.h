// Which kernel variant of attack_gradient runs on how many blocks; shared by the CUDA launcher and
// the host emulator.
#pragma once

#include "core/attack_gradient_params.h"
#include "cuda/launch_plan.h"

namespace ard::cuda {

// max_shared: shared memory that one block may have, in bytes. item_size: bytes of one logit.
inline RowPlan plan_attack_gradient(const AttackGradientParams& p, int item_size,
                                    int64_t max_shared) {
  const int vec = 16 / item_size;
  RowPlan plan{};
  plan.vector = p.classes % vec == 0 && p.logits_stride % vec == 0 && aligned16(p.logits) &&
                aligned16(p.grad);
  const int64_t row_bytes = p.loss == AttackLoss::ce ? ceil_div(p.classes * item_size, 16) * 16 : 0;
  plan_rows(plan, p.batch, p.classes, row_bytes, max_shared);
  return plan;
}

}  // namespace ard::cuda
