// Launchers of the Auto-PGD step; as in launch.h, errors of the launch are left for the caller.
#pragma once

#include "core/params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

void launch_apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, Stream stream);
void launch_apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, Stream stream);

// Without a gradient: what both norms do after the last step.
void launch_apgd_finish(const ApgdParams& p, Stream stream);

}  // namespace ard::cuda
