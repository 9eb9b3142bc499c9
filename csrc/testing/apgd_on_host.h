// The Auto-PGD step launched on the emulator with the geometry that the CUDA launchers would
// choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/apgd_l2_kernels.cuh"
#include "cuda/apgd_linf_kernels.cuh"
#include "cuda/apgd_plan.h"
#include "testing/norm_on_host.h"

namespace ard::emu {

template <typename T>
void apgd_linf_step(const ApgdParams& p) {
  constexpr int kVec = 16 / sizeof(T);
  const auto plan = cuda::plan_apgd_linf_step(p, sizeof(T), cuda::kApgdThreads);
  if (plan.blocks == 0) return;
  auto* const kernel =
      plan.vector ? cuda::apgd_linf_step_kernel<T, kVec> : cuda::apgd_linf_step_kernel<T, 1>;
  launch(kernel, static_cast<unsigned>(plan.blocks), cuda::kApgdThreads, 0, p,
         static_cast<unsigned>(plan.blocks_per_sample));
}

inline void apgd_finish(const ApgdParams& p) {
  const auto plan = cuda::plan_apgd_linf_step(p, sizeof(float), cuda::kApgdThreads);
  if (plan.blocks == 0) return;
  auto* const kernel = plan.vector ? cuda::apgd_finish_kernel<4> : cuda::apgd_finish_kernel<1>;
  launch(kernel, static_cast<unsigned>(plan.blocks), cuda::kApgdThreads, 0, p,
         static_cast<unsigned>(plan.blocks_per_sample));
}

template <typename T, int kVec>
void apgd_l2_step_as(const ApgdParams& p, const cuda::SamplePlan& plan) {
  auto* const kernel = plan.cached ? cuda::apgd_l2_step_kernel<T, kVec, true>
                                   : cuda::apgd_l2_step_kernel<T, kVec, false>;
  launch_in_clusters(kernel, static_cast<unsigned>(plan.blocks),
                     static_cast<unsigned>(plan.cluster), static_cast<unsigned>(plan.threads),
                     static_cast<std::size_t>(plan.shared_bytes), p);
}

template <typename T>
void apgd_l2_step(const ApgdParams& p, const cuda::ApgdL2Plan& plan) {
  if (plan.sample.blocks == 0) return;
  plan.vector ? apgd_l2_step_as<T, 16 / sizeof(T)>(p, plan.sample)
              : apgd_l2_step_as<T, 1>(p, plan.sample);
}

/// The plan for so many blocks a sample and threads a block, where the launcher would choose
/// others.
template <typename T>
cuda::ApgdL2Plan apgd_l2_plan(const ApgdParams& p, int cluster, int threads, bool cached) {
  cuda::ApgdL2Plan plan = cuda::plan_apgd_l2_step(p, sizeof(T), kSampleDevice);
  const int64_t width = plan.vector ? 16 / static_cast<int64_t>(sizeof(T)) : 1;
  const int64_t room = cuda::share_size(p.sample_numel / width, cluster) * width;
  const int64_t staged = cached ? cuda::staged_l2_bytes(room, sizeof(T)) : 0;
  const auto scratch = static_cast<int64_t>(sizeof(cuda::SampleScratch));
  plan.sample = {cached, cluster, threads, p.batch * cluster, scratch + staged};
  return plan;
}

}  // namespace ard::emu
