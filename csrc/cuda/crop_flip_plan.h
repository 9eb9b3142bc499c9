// Launch geometry of the augmentation, shared by the CUDA launcher and the host emulator.
#pragma once

#include "core/crop_flip_params.h"
#include "cuda/launch_plan.h"

namespace ard::cuda {

constexpr int kCropFlipThreads = 256;

struct CropFlipPlan {
  bool vector;  // 16-byte stores
  int64_t blocks_per_sample;
  int64_t blocks;
};

inline CropFlipPlan plan_crop_flip(const CropFlipParams& p) {
  constexpr int64_t kMostVectors = 8;      // of a thread
  constexpr int64_t kEnoughBlocks = 2048;  // to fill any GPU several times over
  const int64_t numel = int64_t(p.channels) * p.height * p.width;
  CropFlipPlan plan{};
  plan.vector = numel % 4 == 0 && aligned16(p.x);
  const int64_t vectors = numel / (plan.vector ? 4 : 1);
  const int64_t one_each = ceil_div(vectors, kCropFlipThreads);
  const int64_t fewest = ceil_div(vectors, kCropFlipThreads * kMostVectors);
  const int64_t wanted = p.batch ? ceil_div(kEnoughBlocks, p.batch) : 1;
  // Every thread draws the sample's view, so threads are few where they are enough.
  plan.blocks_per_sample = wanted < fewest ? fewest : wanted < one_each ? wanted : one_each;
  plan.blocks = p.batch * plan.blocks_per_sample;
  return plan;
}

}  // namespace ard::cuda
