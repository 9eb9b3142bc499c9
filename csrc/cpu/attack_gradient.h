// The CPU loop of attack_gradient; the bindings split the rows among threads. Torch-free.
#pragma once

#include "core/attack_gradient_params.h"
#include "core/params.h"

namespace ard::cpu {

// Rows [begin, end). Labels and target classes are in range.
void attack_gradient(const AttackGradientParams& p, Dtype dtype, int64_t begin, int64_t end);

}  // namespace ard::cpu
