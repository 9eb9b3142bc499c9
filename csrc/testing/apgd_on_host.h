// The Auto-PGD step launched on the emulator with the geometry that the CUDA launchers would
// choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/apgd_linf_kernels.cuh"
#include "cuda/apgd_plan.h"

namespace ard::emu {

template <typename GradT>
void apgd_linf_step(const ApgdParams& p) {
  constexpr int kVec = 16 / sizeof(GradT);
  const auto plan = cuda::plan_apgd_linf_step(p, sizeof(GradT), cuda::kApgdThreads);
  if (plan.blocks == 0) return;
  auto* const kernel = plan.vector ? cuda::apgd_linf_step_kernel<GradT, kVec>
                                   : cuda::apgd_linf_step_kernel<GradT, 1>;
  launch(kernel, static_cast<unsigned>(plan.blocks), cuda::kApgdThreads, 0, p,
         static_cast<unsigned>(plan.blocks_per_sample));
}

}  // namespace ard::emu
