#include "cuda/apgd_launch.h"
#include "cuda/apgd_linf_kernels.cuh"
#include "cuda/apgd_plan.h"
#include "cuda/launch_helpers.cuh"

namespace ard::cuda {

void launch_apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, cudaStream_t stream) {
  if (p.batch == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const ApgdLinfPlan plan = plan_apgd_linf_step(p, sizeof(T), kApgdThreads);
    const unsigned grid = grid_size(plan.blocks);
    const unsigned per_sample = unsigned(plan.blocks_per_sample);
    if (plan.vector) {
      apgd_linf_step_kernel<T, 16 / sizeof(T)><<<grid, kApgdThreads, 0, stream>>>(p, per_sample);
    } else {
      apgd_linf_step_kernel<T, 1><<<grid, kApgdThreads, 0, stream>>>(p, per_sample);
    }
  });
}

void launch_apgd_finish(const ApgdParams& p, cudaStream_t stream) {
  if (p.batch == 0) return;
  const ApgdLinfPlan plan = plan_apgd_linf_step(p, sizeof(float), kApgdThreads);
  const unsigned grid = grid_size(plan.blocks);
  const unsigned per_sample = unsigned(plan.blocks_per_sample);
  if (plan.vector) {
    apgd_finish_kernel<4><<<grid, kApgdThreads, 0, stream>>>(p, per_sample);
  } else {
    apgd_finish_kernel<1><<<grid, kApgdThreads, 0, stream>>>(p, per_sample);
  }
}

}  // namespace ard::cuda
