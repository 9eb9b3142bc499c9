// The augmentation on CUDA tensors.
#include "bindings/crop_flip_pack.h"
#include "bindings/cuda_scope.h"
#include "cuda/crop_flip_launch.h"

namespace ard {
namespace {

std::tuple<Tensor, Tensor> crop_flip_cuda(const Tensor images, const Tensor positions,
                                          std::optional<Tensor> seed, std::optional<Tensor> ids,
                                          std::optional<Tensor> views, int64_t padding, bool flip,
                                          int64_t levels, bool channels_last) {
  const Scope scope(images);
  CropFlipOutputs out;
  const CropFlipParams p = pack_crop_flip(images, positions, seed, ids, views, padding, flip,
                                          levels, channels_last, out);
  cuda::launch_crop_flip(p, scope.stream());
  scope.check_launch();
  return {out.x, out.view};
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("crop_flip", TORCH_BOX(&ard::crop_flip_cuda));
}
