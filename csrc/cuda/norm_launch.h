// The CUDA launchers of the operators that treat a sample as a whole; see launch.h.
#pragma once

#include <cuda_runtime_api.h>

#include "core/norm_params.h"

namespace ard::cuda {

void launch_pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, cudaStream_t stream);

void launch_mifgsm_step(const NormStepParams& p, Dtype grad_dtype, cudaStream_t stream);

void launch_select_best(const SelectParams& p, cudaStream_t stream);

}  // namespace ard::cuda
