// The L-infinity step and the random start launched on the emulator with the geometry that the CUDA
// launchers would choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/launch_plan.h"
#include "cuda/pgd_kernels.cuh"

namespace ard::emu {

template <typename GradT>
void pgd_linf_step(const PgdLinfParams& p) {
  constexpr int kVec = 16 / sizeof(GradT);
  const auto plan = cuda::plan_pgd_linf_step(p, sizeof(GradT), cuda::kPgdThreads);
  if (plan.blocks == 0) return;
  const auto blocks = static_cast<unsigned>(plan.blocks);
  if (plan.vector) {
    launch(cuda::pgd_linf_step_kernel<GradT, kVec>, blocks, cuda::kPgdThreads, 0, p, plan.head,
           plan.vectors);
  } else {
    launch(cuda::pgd_linf_step_scalar_kernel<GradT>, blocks, cuda::kPgdThreads, 0, p);
  }
}

inline void random_start(const RandomStartParams& p) {
  const auto plan = cuda::plan_random_start(p, cuda::kPgdThreads);
  if (plan.blocks == 0) return;
  const auto blocks = static_cast<unsigned>(plan.blocks);
  launch(plan.vector ? cuda::random_start_kernel<true> : cuda::random_start_kernel<false>, blocks,
         cuda::kPgdThreads, 0, p);
}

}  // namespace ard::emu
