// A plan of kernels over whole samples as a launch.
#pragma once

#include "cuda/geometry.h"
#include "cuda/sample_plan.h"

namespace ard::cuda {

inline Geometry geometry_of(const SamplePlan& plan) {
  return {plan.blocks, plan.threads, plan.shared_bytes, plan.cluster};
}

}  // namespace ard::cuda
