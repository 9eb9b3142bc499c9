// The steps along a normalised gradient and the selection launched on the emulator with the
// geometry that the CUDA launchers would choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/norm_kernels.cuh"
#include "cuda/norm_plan.h"

namespace ard::emu {

/// An H100.
constexpr cuda::SampleDevice kSampleDevice{227 * 1024, 132, true};

/// The kernels of both steps have the same template and launch parameters.
#define ARD_EMU_NORM_STEP(name)                                                                   \
  template <typename T, int kVec>                                                                 \
  void name##_as(const NormStepParams& p, const cuda::SamplePlan& plan) {                         \
    auto* const kernel =                                                                          \
        plan.cached ? cuda::name##_kernel<T, kVec, true> : cuda::name##_kernel<T, kVec, false>;   \
    launch_in_clusters(kernel, static_cast<unsigned>(plan.blocks),                                \
                       static_cast<unsigned>(plan.cluster), static_cast<unsigned>(plan.threads),  \
                       static_cast<std::size_t>(plan.shared_bytes), p);                           \
  }                                                                                               \
  template <typename T>                                                                           \
  void name(const NormStepParams& p, const cuda::NormStepPlan& plan) {                            \
    if (plan.sample.blocks == 0) return;                                                          \
    plan.vector ? name##_as<T, 16 / sizeof(T)>(p, plan.sample) : name##_as<T, 1>(p, plan.sample); \
  }

ARD_EMU_NORM_STEP(pgd_l2_step)
ARD_EMU_NORM_STEP(mifgsm_step)
#undef ARD_EMU_NORM_STEP

/// The plan for so many blocks a sample and threads a block, where the launcher would choose
/// others.
template <typename T>
cuda::NormStepPlan norm_step_plan(const NormStepParams& p, bool mifgsm, int cluster, int threads,
                                  bool cached) {
  cuda::NormStepPlan plan = cuda::plan_norm_step(p, sizeof(T), mifgsm, kSampleDevice);
  const int64_t width = plan.vector ? 16 / static_cast<int64_t>(sizeof(T)) : 1;
  const int64_t room = cuda::share_size(p.sample_numel / width, cluster) * width;
  const int64_t staged =
      mifgsm ? cuda::staged_mifgsm_bytes(room, sizeof(T)) : cuda::staged_l2_bytes(room, sizeof(T));
  const auto scratch = static_cast<int64_t>(sizeof(cuda::SampleScratch));
  plan.sample = {cached, cluster, threads, p.batch * cluster, scratch + (cached ? staged : 0)};
  return plan;
}

inline void select_best(const SelectParams& p) {
  const auto plan = cuda::plan_select_best(p, cuda::kSelectThreads);
  const auto blocks = static_cast<unsigned>(p.batch * plan.blocks_per_sample);
  if (blocks == 0) return;
  launch(plan.vector ? cuda::select_best_kernel<4> : cuda::select_best_kernel<1>, blocks,
         cuda::kSelectThreads, 0, p, plan.blocks_per_sample);
}

}  // namespace ard::emu
