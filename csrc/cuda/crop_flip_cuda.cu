#include "cuda/crop_flip_kernels.cuh"
#include "cuda/crop_flip_launch.h"
#include "cuda/crop_flip_plan.h"
#include "cuda/start.h"

namespace ard::cuda {
namespace {

template <bool kChannelsLast, int kVec>
void launch_variant(const CropFlipParams& p, const CropFlipPlan& plan, Stream stream) {
  start<crop_flip_kernel<kChannelsLast, kVec>>({plan.blocks, kCropFlipThreads}, stream, p,
                                               uint32_t(plan.blocks_per_sample));
}

}  // namespace

void launch_crop_flip(const CropFlipParams& p, Stream stream) {
  if (p.batch == 0) return;
  const CropFlipPlan plan = plan_crop_flip(p);
  if (plan.vector) {
    p.channels_last ? launch_variant<true, 4>(p, plan, stream)
                    : launch_variant<false, 4>(p, plan, stream);
  } else {
    p.channels_last ? launch_variant<true, 1>(p, plan, stream)
                    : launch_variant<false, 1>(p, plan, stream);
  }
}

}  // namespace ard::cuda
