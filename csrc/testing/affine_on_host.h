// affine_relu and its backward pass launched on the emulator with the geometry that the CUDA
// launchers would choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/affine_kernels.cuh"
#include "cuda/affine_plan.h"

namespace ard::emu {

template <typename T>
void affine_relu(const AffineReluParams& p) {
  using cuda::Spread;
  constexpr int kVec = 16 / sizeof(T);
  if (p.numel == 0) return;
  const cuda::AffinePlan plan = cuda::plan_affine_relu(p, sizeof(T));
  if (!plan.vector) {
    launch(cuda::affine_relu_bytes_kernel<T>, plan.blocks, cuda::kAffineThreads, 0, p);
    return;
  }
  const auto kernel = plan.spread == Spread::one   ? cuda::affine_relu_kernel<T, Spread::one, kVec>
                      : plan.spread == Spread::row ? cuda::affine_relu_kernel<T, Spread::row, kVec>
                                                   : cuda::affine_relu_kernel<T, Spread::any, kVec>;
  launch(kernel, plan.blocks, cuda::kAffineThreads, 0, p, plan.run);
}

template <typename T>
void affine_relu_backward(const AffineReluBackwardParams& p) {
  using cuda::Spread;
  constexpr int kVec = 16 / sizeof(T);
  if (p.numel == 0) return;
  const cuda::AffinePlan plan = cuda::plan_affine_relu_backward(p, sizeof(T));
  if (!plan.vector) {
    launch(cuda::affine_relu_backward_bytes_kernel<T>, plan.blocks, cuda::kAffineThreads, 0, p);
    return;
  }
  const auto kernel =
      plan.spread == Spread::one   ? cuda::affine_relu_backward_kernel<T, Spread::one, kVec>
      : plan.spread == Spread::row ? cuda::affine_relu_backward_kernel<T, Spread::row, kVec>
                                   : cuda::affine_relu_backward_kernel<T, Spread::any, kVec>;
  launch(kernel, plan.blocks, cuda::kAffineThreads, 0, p, plan.run);
}

}  // namespace ard::emu
