// The kernels of pair_loss_kernels.cuh, declared.
#pragma once

#include "core/pair_params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kPairLossKernels[] = "cuda/pair_loss_kernels.cuh";

template <typename T, int kVec, bool kMart>
__global__ void pair_loss_warp_kernel(PairLossParams p);

template <typename T, int kVec, bool kMart, bool kCached>
__global__ void pair_loss_block_kernel(PairLossParams p);

}  // namespace ard::cuda
