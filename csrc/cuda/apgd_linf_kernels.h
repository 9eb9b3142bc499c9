// The kernels of apgd_linf_kernels.cuh, declared.
#pragma once

#include "core/params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kApgdLinfKernels[] = "cuda/apgd_linf_kernels.cuh";

constexpr int kApgdThreads = 256;

template <typename T, int kVec>
__global__ void apgd_linf_step_kernel(ApgdParams p, unsigned blocks_per_sample);

template <int kVec>
__global__ void apgd_finish_kernel(ApgdParams p, unsigned blocks_per_sample);

}  // namespace ard::cuda
