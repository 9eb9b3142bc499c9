// The kernels of norm_kernels.cuh, declared.
#pragma once

#include "core/norm_params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kNormKernels[] = "cuda/norm_kernels.cuh";

constexpr int kSelectThreads = 256;

template <typename T, int kVec, bool kCached>
__global__ void pgd_l2_step_kernel(NormStepParams p);

template <typename T, int kVec, bool kCached>
__global__ void mifgsm_step_kernel(NormStepParams p);

template <int kVec>
__global__ void select_best_kernel(SelectParams p, int64_t blocks_per_sample);

}  // namespace ard::cuda
