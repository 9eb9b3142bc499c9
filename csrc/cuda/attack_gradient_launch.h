// The CUDA launcher of attack_gradient (see launch.h).
#pragma once

#include "core/attack_gradient_params.h"
#include "core/params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

void launch_attack_gradient(const AttackGradientParams& p, Dtype dtype, Stream stream);

}  // namespace ard::cuda
