// CPU loops of the operators that treat a sample as a whole, over samples [begin, end). Torch-free.
#pragma once

#include "core/half.h"
#include "core/norm_params.h"

namespace ard::cpu {

void pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, int64_t begin, int64_t end);

void mifgsm_step(const NormStepParams& p, Dtype grad_dtype, int64_t begin, int64_t end);

void select_best(const SelectParams& p, int64_t begin, int64_t end);

}  // namespace ard::cpu
