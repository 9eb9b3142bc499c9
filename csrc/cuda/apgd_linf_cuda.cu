#include "cuda/apgd_launch.h"
#include "cuda/apgd_linf_kernels.cuh"
#include "cuda/apgd_plan.h"
#include "cuda/dtypes.h"
#include "cuda/start.h"

namespace ard::cuda {

void launch_apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const ApgdLinfPlan plan = plan_apgd_linf_step(p, sizeof(T), kApgdThreads);
    const unsigned per_sample = unsigned(plan.blocks_per_sample);
    if (plan.vector) {
      start<apgd_linf_step_kernel<T, 16 / sizeof(T)>>({plan.blocks, kApgdThreads}, stream, p,
                                                      per_sample);
    } else {
      start<apgd_linf_step_kernel<T, 1>>({plan.blocks, kApgdThreads}, stream, p, per_sample);
    }
  });
}

void launch_apgd_finish(const ApgdParams& p, Stream stream) {
  if (p.batch == 0) return;
  const ApgdLinfPlan plan = plan_apgd_linf_step(p, sizeof(float), kApgdThreads);
  const unsigned per_sample = unsigned(plan.blocks_per_sample);
  if (plan.vector) {
    start<apgd_finish_kernel<4>>({plan.blocks, kApgdThreads}, stream, p, per_sample);
  } else {
    start<apgd_finish_kernel<1>>({plan.blocks, kApgdThreads}, stream, p, per_sample);
  }
}

}  // namespace ard::cuda
