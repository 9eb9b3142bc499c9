// Which kernel variant of attack_gradient runs on how many blocks; shared by the CUDA launcher and
// the host emulator.
#pragma once

#include "core/attack_gradient_params.h"
#include "cuda/launch_plan.h"

namespace ard::cuda {

struct AttackGradientPlan {
  bool warp;    // a warp a row, else a block a row
  bool vector;  // 16-byte loads
  bool cached;  // cross-entropy only: the row stays in shared memory between its passes
  int threads;  // of a block
  int64_t blocks;
  int64_t shared_bytes;
};

// max_shared: shared memory that one block may have, in bytes. item_size: bytes of one logit.
inline AttackGradientPlan plan_attack_gradient(const AttackGradientParams& p, int item_size,
                                               int64_t max_shared) {
  const int vec = 16 / item_size;
  AttackGradientPlan plan{};
  plan.vector = p.classes % vec == 0 && p.logits_stride % vec == 0 && aligned16(p.logits) &&
                aligned16(p.grad);
  const int64_t row_bytes = p.loss == AttackLoss::ce ? ceil_div(p.classes * item_size, 16) * 16 : 0;
  if (p.classes <= kWarpRowClasses) {
    plan.warp = true;
    plan.cached = true;
    plan.threads = 32 * kWarpsPerBlock;
    plan.blocks = ceil_div(p.batch, kWarpsPerBlock);
    plan.shared_bytes = kWarpsPerBlock * row_bytes;
    return plan;
  }
  plan.threads = p.classes <= 8192 ? 256 : p.classes <= 32768 ? 512 : 1024;
  plan.blocks = p.batch;
  plan.cached = row_bytes <= max_shared;
  plan.shared_bytes = plan.cached ? row_bytes : 0;
  return plan;
}

}  // namespace ard::cuda
