// The kernels of kd_loss_kernels.cuh, declared.
#pragma once

#include "core/params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kKdLossKernels[] = "cuda/kd_loss_kernels.cuh";

constexpr int kScaleThreads = 256;

template <typename T, int kVec>
__global__ void kd_loss_warp_kernel(KdLossParams p);

template <typename T, int kVec, bool kCached>
__global__ void kd_loss_block_kernel(KdLossParams p);

__global__ void sum_rows_kernel(const float* rows, int64_t count, float* total);

template <typename T, int kVec>
__global__ void scale_rows_kernel(T* grad, int64_t numel, int64_t classes, const float* scale,
                                  bool per_row, float factor);

}  // namespace ard::cuda
