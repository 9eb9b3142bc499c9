#include "cuda/attack_gradient_kernels.cuh"
#include "cuda/attack_gradient_launch.h"
#include "cuda/attack_gradient_plan.h"
#include "cuda/launch_helpers.cuh"
#include "cuda/shared_memory.cuh"

namespace ard::cuda {
namespace {

template <typename T, int kVec>
void launch_rows(const AttackGradientParams& p, const RowPlan& plan, cudaStream_t stream) {
  const unsigned grid = grid_size(plan.blocks);
  const int shared = int(plan.shared_bytes);
  if (p.loss != AttackLoss::ce) {
    if (plan.warp) {
      compared_gradient_warp_kernel<T, kVec><<<grid, plan.threads, 0, stream>>>(p);
    } else {
      compared_gradient_block_kernel<T, kVec><<<grid, plan.threads, 0, stream>>>(p);
    }
  } else if (plan.warp) {
    ce_gradient_warp_kernel<T, kVec><<<grid, plan.threads, shared, stream>>>(p);
  } else if (plan.cached) {
    allow_dynamic_shared(ce_gradient_block_kernel<T, kVec, true>, shared);
    ce_gradient_block_kernel<T, kVec, true><<<grid, plan.threads, shared, stream>>>(p);
  } else {
    ce_gradient_block_kernel<T, kVec, false><<<grid, plan.threads, 0, stream>>>(p);
  }
}

}  // namespace

void launch_attack_gradient(const AttackGradientParams& p, Dtype dtype, cudaStream_t stream) {
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
