// The CUDA launcher of attack_gradient (see launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "core/attack_gradient_params.h"
#include "core/params.h"

namespace ard::cuda {

void launch_attack_gradient(const AttackGradientParams& p, Dtype dtype, cudaStream_t stream);

}  // namespace ard::cuda
