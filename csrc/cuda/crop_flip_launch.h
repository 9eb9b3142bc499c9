// The CUDA launcher of the augmentation, torch-free; see launch.h.
#pragma once

#include "core/crop_flip_params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

void launch_crop_flip(const CropFlipParams& p, Stream stream);

}  // namespace ard::cuda
