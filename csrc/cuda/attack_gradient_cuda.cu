#include "cuda/attack_gradient_kernels.cuh"
#include "cuda/attack_gradient_launch.h"
#include "cuda/attack_gradient_plan.h"
#include "cuda/device.h"
#include "cuda/dtypes.h"
#include "cuda/rows.h"
#include "cuda/start.h"

namespace ard::cuda {
namespace {

template <typename T, int kVec>
void launch_rows(const AttackGradientParams& p, const RowPlan& plan, Stream stream) {
  if (p.loss != AttackLoss::ce) {
    if (plan.warp) {
      start<compared_gradient_warp_kernel<T, kVec>>({plan.blocks, plan.threads}, stream, p);
    } else {
      start<compared_gradient_block_kernel<T, kVec>>({plan.blocks, plan.threads}, stream, p);
    }
  } else if (plan.warp) {
    start<ce_gradient_warp_kernel<T, kVec>>({plan.blocks, plan.threads, plan.shared_bytes}, stream,
                                            p);
  } else if (plan.cached) {
    start<ce_gradient_block_kernel<T, kVec, true>>({plan.blocks, plan.threads, plan.shared_bytes},
                                                   stream, p);
  } else {
    start<ce_gradient_block_kernel<T, kVec, false>>({plan.blocks, plan.threads}, stream, p);
  }
}

}  // namespace

void launch_attack_gradient(const AttackGradientParams& p, Dtype dtype, Stream stream) {
  if (p.batch == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const RowPlan plan =
        plan_attack_gradient(p, sizeof(T), max_dynamic_shared(sizeof(BlockScratch)));
    if (plan.vector) {
      launch_rows<T, 16 / sizeof(T)>(p, plan, stream);
    } else {
      launch_rows<T, 1>(p, plan, stream);
    }
  });
}

}  // namespace ard::cuda
