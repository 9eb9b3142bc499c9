// The CPU loop of the losses of adversarial and clean logits (see kernels.h).
#pragma once

#include "core/half.h"
#include "core/pair_params.h"
#include "core/params.h"

namespace ard::cpu {

// Rows [begin, end).
void pair_loss(const PairLossParams& p, Dtype dtype, int64_t begin, int64_t end);

}  // namespace ard::cpu
