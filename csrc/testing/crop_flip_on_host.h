// The augmentation launched on the emulator with the geometry that the CUDA launcher would choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/crop_flip_kernels.cuh"
#include "cuda/crop_flip_plan.h"

namespace ard::emu {

inline void crop_flip(const CropFlipParams& p) {
  const cuda::CropFlipPlan plan = cuda::plan_crop_flip(p);
  if (plan.blocks == 0) return;
  void (*kernel)(CropFlipParams, uint32_t);
  if (plan.vector) {
    kernel = p.channels_last ? cuda::crop_flip_kernel<true, 4> : cuda::crop_flip_kernel<false, 4>;
  } else {
    kernel = p.channels_last ? cuda::crop_flip_kernel<true, 1> : cuda::crop_flip_kernel<false, 1>;
  }
  launch(kernel, static_cast<unsigned>(plan.blocks), cuda::kCropFlipThreads, 0, p,
         static_cast<uint32_t>(plan.blocks_per_sample));
}

}  // namespace ard::emu
