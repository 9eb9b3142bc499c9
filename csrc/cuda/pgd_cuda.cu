#include "cuda/launch.h"
#include "cuda/launch_helpers.cuh"
#include "cuda/launch_plan.h"
#include "cuda/pgd_kernels.cuh"

namespace ard::cuda {

void launch_pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, cudaStream_t stream) {
  if (p.numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const PgdLinfPlan plan = plan_pgd_linf_step(p, sizeof(T), kPgdThreads);
    const unsigned grid = grid_size(plan.blocks);
    if (plan.vector) {
      pgd_linf_step_kernel<T, 16 / sizeof(T)>
          <<<grid, kPgdThreads, 0, stream>>>(p, plan.head, plan.vectors);
    } else {
      pgd_linf_step_scalar_kernel<T><<<grid, kPgdThreads, 0, stream>>>(p);
    }
  });
}

void launch_random_start(const RandomStartParams& p, cudaStream_t stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  const RandomStartPlan plan = plan_random_start(p, kPgdThreads);
  const unsigned grid = grid_size(plan.blocks);
  if (plan.vector) {
    random_start_kernel<true><<<grid, kPgdThreads, 0, stream>>>(p);
  } else {
    random_start_kernel<false><<<grid, kPgdThreads, 0, stream>>>(p);
  }
}

}  // namespace ard::cuda
