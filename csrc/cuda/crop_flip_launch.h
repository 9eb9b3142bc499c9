// The CUDA launcher of the augmentation, torch-free; see launch.h.
#pragma once

#include <cuda_runtime_api.h>

#include "core/crop_flip_params.h"

namespace ard::cuda {

void launch_crop_flip(const CropFlipParams& p, cudaStream_t stream);

}  // namespace ard::cuda
