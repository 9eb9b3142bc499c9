// The distillation loss launched on the emulator with the geometry that the CUDA launchers would
// choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/kd_loss_kernels.cuh"
#include "cuda/launch_plan.h"

namespace ard::emu {

/// Shared memory that a block of sm_90 may have beside its static arrays.
constexpr int64_t kMaxSharedBytes = 227 * 1024 - static_cast<int64_t>(sizeof(cuda::BlockScratch));

template <typename T, int kVec>
void kd_loss_rows(const KdLossParams& p, const cuda::RowPlan& plan) {
  if (plan.blocks == 0) return;
  auto* const kernel = plan.warp     ? cuda::kd_loss_warp_kernel<T, kVec>
                       : plan.cached ? cuda::kd_loss_block_kernel<T, kVec, true>
                                     : cuda::kd_loss_block_kernel<T, kVec, false>;
  launch(kernel, static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.threads),
         static_cast<std::size_t>(plan.shared_bytes), p);
}

template <typename T>
void kd_loss(const KdLossParams& p, const cuda::RowPlan& plan) {
  if (plan.vector) {
    kd_loss_rows<T, 16 / sizeof(T)>(p, plan);
  } else {
    kd_loss_rows<T, 1>(p, plan);
  }
}

/// The plan for a block of `threads` a row, where the launcher would give small rows to a warp.
template <typename T>
cuda::RowPlan block_plan(const KdLossParams& p, int threads, bool cached) {
  cuda::RowPlan plan = cuda::plan_kd_loss(p, sizeof(T), kMaxSharedBytes);
  const int64_t row_bytes =
      2 * cuda::ceil_div(p.classes * static_cast<int64_t>(sizeof(T)), 16) * 16;
  plan.warp = false;
  plan.cached = cached;
  plan.threads = threads;
  plan.blocks = p.batch;
  plan.shared_bytes = cached ? row_bytes : 0;
  return plan;
}

inline void sum_rows(const float* rows, int64_t count, float* total) {
  const auto threads = static_cast<unsigned>(cuda::sum_rows_threads(count));
  launch(cuda::sum_rows_kernel, 1, threads, 0, rows, count, total);
}

template <typename T>
void scale_rows(T* grad, int64_t numel, int64_t classes, const float* scale, bool per_row,
                float factor) {
  const auto plan =
      cuda::plan_scale_rows(grad, numel, classes, sizeof(T), per_row, cuda::kScaleThreads);
  if (plan.blocks == 0) return;
  auto* const kernel =
      plan.vector ? cuda::scale_rows_kernel<T, 16 / sizeof(T)> : cuda::scale_rows_kernel<T, 1>;
  launch(kernel, static_cast<unsigned>(plan.blocks), cuda::kScaleThreads, 0, grad, numel, classes,
         scale, per_row, factor);
}

}  // namespace ard::emu
