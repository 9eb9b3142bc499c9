#include "cuda/launch_helpers.cuh"
#include "cuda/norm_kernels.cuh"
#include "cuda/norm_launch.h"
#include "cuda/sample_launch.cuh"

namespace ard::cuda {
namespace {

template <typename T, int kVec>
void launch_l2(const NormStepParams& p, const SamplePlan& plan, cudaStream_t stream) {
  launch_samples(
      plan.cached ? pgd_l2_step_kernel<T, kVec, true> : pgd_l2_step_kernel<T, kVec, false>, plan,
      stream, p);
}

template <typename T, int kVec>
void launch_mifgsm(const NormStepParams& p, const SamplePlan& plan, cudaStream_t stream) {
  launch_samples(
      plan.cached ? mifgsm_step_kernel<T, kVec, true> : mifgsm_step_kernel<T, kVec, false>, plan,
      stream, p);
}

}  // namespace

void launch_pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, cudaStream_t stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const NormStepPlan plan = plan_norm_step(p, sizeof(T), false, sample_device());
    if (plan.vector) {
      launch_l2<T, 16 / sizeof(T)>(p, plan.sample, stream);
    } else {
      launch_l2<T, 1>(p, plan.sample, stream);
    }
  });
}

void launch_mifgsm_step(const NormStepParams& p, Dtype grad_dtype, cudaStream_t stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const NormStepPlan plan = plan_norm_step(p, sizeof(T), true, sample_device());
    if (plan.vector) {
      launch_mifgsm<T, 16 / sizeof(T)>(p, plan.sample, stream);
    } else {
      launch_mifgsm<T, 1>(p, plan.sample, stream);
    }
  });
}

void launch_select_best(const SelectParams& p, cudaStream_t stream) {
  if (p.batch == 0) return;
  const SelectPlan plan = plan_select_best(p, kSelectThreads);
  const unsigned grid = grid_size(p.batch * plan.blocks_per_sample);
  if (plan.vector) {
    select_best_kernel<4><<<grid, kSelectThreads, 0, stream>>>(p, plan.blocks_per_sample);
  } else {
    select_best_kernel<1><<<grid, kSelectThreads, 0, stream>>>(p, plan.blocks_per_sample);
  }
}

}  // namespace ard::cuda
