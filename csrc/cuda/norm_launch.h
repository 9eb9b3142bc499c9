// The CUDA launchers of the operators that treat a sample as a whole; see launch.h.
#pragma once

#include "core/norm_params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

void launch_pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, Stream stream);

void launch_mifgsm_step(const NormStepParams& p, Dtype grad_dtype, Stream stream);

void launch_select_best(const SelectParams& p, Stream stream);

}  // namespace ard::cuda
