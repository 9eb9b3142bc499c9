// The kernel of apgd_l2_kernels.cuh, declared.
#pragma once

#include "core/params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kApgdL2Kernels[] = "cuda/apgd_l2_kernels.cuh";

template <typename T, int kVec, bool kCached>
__global__ void apgd_l2_step_kernel(ApgdParams p);

}  // namespace ard::cuda
