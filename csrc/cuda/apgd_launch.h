// Launchers of the Auto-PGD step; as in launch.h, errors of the launch are left for the caller.
#pragma once

#include <cuda_runtime_api.h>

#include "core/params.h"

namespace ard::cuda {

void launch_apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, cudaStream_t stream);
void launch_apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, cudaStream_t stream);

// Without a gradient: what both norms do after the last step.
void launch_apgd_finish(const ApgdParams& p, cudaStream_t stream);

}  // namespace ard::cuda
