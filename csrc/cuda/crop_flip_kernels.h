// The kernel of crop_flip_kernels.cuh, declared.
#pragma once

#include "core/crop_flip_params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kCropFlipKernels[] = "cuda/crop_flip_kernels.cuh";

constexpr int kCropFlipThreads = 256;

template <bool kChannelsLast, int kVec>
__global__ void crop_flip_kernel(CropFlipParams p, uint32_t blocks);

}  // namespace ard::cuda
