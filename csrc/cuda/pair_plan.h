// Which kernel variant of pair_loss runs on how many blocks; shared by the CUDA launcher and the
// host emulator.
#pragma once

#include "core/pair_params.h"
#include "cuda/launch_plan.h"

namespace ard::cuda {

// max_shared: shared memory that one block may have, in bytes. item_size: bytes of one logit.
inline RowPlan plan_pair_loss(const PairLossParams& p, int item_size, int64_t max_shared) {
  const int vec = 16 / item_size;
  RowPlan plan{};
  plan.vector = p.classes % vec == 0 && p.adv_stride % vec == 0 && p.clean_stride % vec == 0 &&
                aligned16(p.adv) && aligned16(p.clean) && aligned16(p.grad_adv) &&
                aligned16(p.grad_clean);
  const int64_t row_bytes = 2 * ceil_div(p.classes * item_size, 16) * 16;
  plan_rows(plan, p.batch, p.classes, row_bytes, max_shared);
  return plan;
}

}  // namespace ard::cuda
