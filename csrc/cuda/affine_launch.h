// The CUDA launchers of affine_relu and its backward pass, torch-free; see launch.h.
#pragma once

#include <cuda_runtime_api.h>

#include "core/affine_params.h"
#include "core/params.h"

namespace ard::cuda {

void launch_affine_relu(const AffineReluParams& p, Dtype dtype, cudaStream_t stream);

void launch_affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype,
                                 cudaStream_t stream);

}  // namespace ard::cuda
