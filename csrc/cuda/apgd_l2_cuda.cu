#include "cuda/apgd_l2_kernels.cuh"
#include "cuda/apgd_launch.h"
#include "cuda/apgd_plan.h"
#include "cuda/device.h"
#include "cuda/dtypes.h"
#include "cuda/sample_geometry.h"
#include "cuda/start.h"

namespace ard::cuda {
namespace {

template <typename T, int kVec>
void launch_l2(const ApgdParams& p, const SamplePlan& plan, Stream stream) {
  if (plan.cached) {
    start<apgd_l2_step_kernel<T, kVec, true>>(geometry_of(plan), stream, p);
  } else {
    start<apgd_l2_step_kernel<T, kVec, false>>(geometry_of(plan), stream, p);
  }
}

}  // namespace

void launch_apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const SampleDevice device = sample_device<apgd_l2_step_kernel<T, 16 / sizeof(T), true>>();
    const ApgdL2Plan plan = plan_apgd_l2_step(p, sizeof(T), device);
    if (plan.vector) {
      launch_l2<T, 16 / sizeof(T)>(p, plan.sample, stream);
    } else {
      launch_l2<T, 1>(p, plan.sample, stream);
    }
  });
}

}  // namespace ard::cuda
