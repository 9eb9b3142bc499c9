#include "cuda/dtypes.h"
#include "cuda/launch.h"
#include "cuda/launch_plan.h"
#include "cuda/pgd_kernels.cuh"
#include "cuda/start.h"

namespace ard::cuda {

void launch_pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, Stream stream) {
  if (p.numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const PgdLinfPlan plan = plan_pgd_linf_step(p, sizeof(T), kPgdThreads);
    if (plan.vector) {
      start<pgd_linf_step_kernel<T, 16 / sizeof(T)>>({plan.blocks, kPgdThreads}, stream, p,
                                                     plan.head, plan.vectors);
    } else {
      start<pgd_linf_step_scalar_kernel<T>>({plan.blocks, kPgdThreads}, stream, p);
    }
  });
}

void launch_random_start(const RandomStartParams& p, Stream stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  const RandomStartPlan plan = plan_random_start(p, kPgdThreads);
  if (plan.vector) {
    start<random_start_kernel<true>>({plan.blocks, kPgdThreads}, stream, p);
  } else {
    start<random_start_kernel<false>>({plan.blocks, kPgdThreads}, stream, p);
  }
}

}  // namespace ard::cuda
