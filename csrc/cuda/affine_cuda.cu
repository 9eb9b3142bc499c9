#include "cuda/affine_kernels.cuh"
#include "cuda/affine_launch.h"
#include "cuda/affine_plan.h"
#include "cuda/dtypes.h"
#include "cuda/start.h"

namespace ard::cuda {

void launch_affine_relu(const AffineReluParams& p, Dtype dtype, Stream stream) {
  if (p.numel == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    constexpr int kVec = 16 / sizeof(T);
    const AffinePlan plan = plan_affine_relu(p, sizeof(T));
    if (!plan.vector) {
      start<affine_relu_bytes_kernel<T>>({plan.blocks, kAffineThreads}, stream, p);
    } else if (plan.spread == Spread::one) {
      start<affine_relu_kernel<T, Spread::one, kVec>>({plan.blocks, kAffineThreads}, stream, p,
                                                      plan.run);
    } else if (plan.spread == Spread::row) {
      start<affine_relu_kernel<T, Spread::row, kVec>>({plan.blocks, kAffineThreads}, stream, p,
                                                      plan.run);
    } else {
      start<affine_relu_kernel<T, Spread::any, kVec>>({plan.blocks, kAffineThreads}, stream, p,
                                                      plan.run);
    }
  });
}

void launch_affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, Stream stream) {
  if (p.numel == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    constexpr int kVec = 16 / sizeof(T);
    const AffinePlan plan = plan_affine_relu_backward(p, sizeof(T));
    if (!plan.vector) {
      start<affine_relu_backward_bytes_kernel<T>>({plan.blocks, kAffineThreads}, stream, p);
    } else if (plan.spread == Spread::one) {
      start<affine_relu_backward_kernel<T, Spread::one, kVec>>({plan.blocks, kAffineThreads},
                                                               stream, p, plan.run);
    } else if (plan.spread == Spread::row) {
      start<affine_relu_backward_kernel<T, Spread::row, kVec>>({plan.blocks, kAffineThreads},
                                                               stream, p, plan.run);
    } else {
      start<affine_relu_backward_kernel<T, Spread::any, kVec>>({plan.blocks, kAffineThreads},
                                                               stream, p, plan.run);
    }
  });
}

}  // namespace ard::cuda
