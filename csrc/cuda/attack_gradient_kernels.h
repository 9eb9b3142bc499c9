// The kernels of attack_gradient_kernels.cuh, declared.
#pragma once

#include "core/attack_gradient_params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kAttackGradientKernels[] = "cuda/attack_gradient_kernels.cuh";

template <typename T, int kVec>
__global__ void ce_gradient_warp_kernel(AttackGradientParams p);

template <typename T, int kVec, bool kCached>
__global__ void ce_gradient_block_kernel(AttackGradientParams p);

template <typename T, int kVec>
__global__ void compared_gradient_warp_kernel(AttackGradientParams p);

template <typename T, int kVec>
__global__ void compared_gradient_block_kernel(AttackGradientParams p);

}  // namespace ard::cuda
