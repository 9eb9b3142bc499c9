// The CUDA launchers of affine_relu and its backward pass, torch-free; see launch.h.
#pragma once

#include "core/affine_params.h"
#include "core/params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

void launch_affine_relu(const AffineReluParams& p, Dtype dtype, Stream stream);

void launch_affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, Stream stream);

}  // namespace ard::cuda
