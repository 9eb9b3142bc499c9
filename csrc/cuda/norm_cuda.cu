#include "cuda/device.h"
#include "cuda/dtypes.h"
#include "cuda/norm_kernels.cuh"
#include "cuda/norm_launch.h"
#include "cuda/norm_plan.h"
#include "cuda/sample_geometry.h"
#include "cuda/start.h"

namespace ard::cuda {
namespace {

template <typename T, int kVec>
void launch_l2(const NormStepParams& p, const SamplePlan& plan, Stream stream) {
  if (plan.cached) {
    start<pgd_l2_step_kernel<T, kVec, true>>(geometry_of(plan), stream, p);
  } else {
    start<pgd_l2_step_kernel<T, kVec, false>>(geometry_of(plan), stream, p);
  }
}

template <typename T, int kVec>
void launch_mifgsm(const NormStepParams& p, const SamplePlan& plan, Stream stream) {
  if (plan.cached) {
    start<mifgsm_step_kernel<T, kVec, true>>(geometry_of(plan), stream, p);
  } else {
    start<mifgsm_step_kernel<T, kVec, false>>(geometry_of(plan), stream, p);
  }
}

}  // namespace

void launch_pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const SampleDevice device = sample_device<pgd_l2_step_kernel<T, 16 / sizeof(T), true>>();
    const NormStepPlan plan = plan_norm_step(p, sizeof(T), false, device);
    if (plan.vector) {
      launch_l2<T, 16 / sizeof(T)>(p, plan.sample, stream);
    } else {
      launch_l2<T, 1>(p, plan.sample, stream);
    }
  });
}

void launch_mifgsm_step(const NormStepParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const SampleDevice device = sample_device<mifgsm_step_kernel<T, 16 / sizeof(T), true>>();
    const NormStepPlan plan = plan_norm_step(p, sizeof(T), true, device);
    if (plan.vector) {
      launch_mifgsm<T, 16 / sizeof(T)>(p, plan.sample, stream);
    } else {
      launch_mifgsm<T, 1>(p, plan.sample, stream);
    }
  });
}

void launch_select_best(const SelectParams& p, Stream stream) {
  if (p.batch == 0) return;
  const SelectPlan plan = plan_select_best(p, kSelectThreads);
  const int64_t blocks = p.batch * plan.blocks_per_sample;
  if (plan.vector) {
    start<select_best_kernel<4>>({blocks, kSelectThreads}, stream, p, plan.blocks_per_sample);
  } else {
    start<select_best_kernel<1>>({blocks, kSelectThreads}, stream, p, plan.blocks_per_sample);
  }
}

}  // namespace ard::cuda
