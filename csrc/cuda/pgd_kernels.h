// The kernels of pgd_kernels.cuh, declared.
#pragma once

#include "core/params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kPgdKernels[] = "cuda/pgd_kernels.cuh";

constexpr int kPgdThreads = 256;

template <typename GradT, int kVec>
__global__ void pgd_linf_step_kernel(PgdLinfParams p, int64_t head, int64_t vectors);

template <typename GradT>
__global__ void pgd_linf_step_scalar_kernel(PgdLinfParams p);

template <bool kVector>
__global__ void random_start_kernel(RandomStartParams p);

}  // namespace ard::cuda
