// attack_gradient launched on the emulator with the geometry that the CUDA launcher would choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/attack_gradient_kernels.cuh"
#include "cuda/attack_gradient_plan.h"

namespace ard::emu {

/// The plan for a device of `max_shared` bytes of shared memory a block.
template <typename T>
cuda::RowPlan attack_gradient_plan(const AttackGradientParams& p, int64_t max_shared = 227 * 1024) {
  return cuda::plan_attack_gradient(p, sizeof(T),
                                    max_shared - static_cast<int64_t>(sizeof(cuda::BlockScratch)));
}

/// The plan for a block of `threads` a row, where the launcher would give small rows to a warp.
template <typename T>
cuda::RowPlan attack_gradient_block_plan(const AttackGradientParams& p, int threads, bool cached) {
  cuda::RowPlan plan = attack_gradient_plan<T>(p);
  const int64_t row_bytes = cuda::ceil_div(p.classes * static_cast<int64_t>(sizeof(T)), 16) * 16;
  plan.warp = false;
  plan.cached = cached;
  plan.threads = threads;
  plan.blocks = p.batch;
  plan.shared_bytes = cached && p.loss == AttackLoss::ce ? row_bytes : 0;
  return plan;
}

template <typename T, int kVec>
void attack_gradient_rows(const AttackGradientParams& p, const cuda::RowPlan& plan) {
  if (plan.blocks == 0) return;
  void (*kernel)(AttackGradientParams);
  if (p.loss != AttackLoss::ce) {
    kernel = plan.warp ? cuda::compared_gradient_warp_kernel<T, kVec>
                       : cuda::compared_gradient_block_kernel<T, kVec>;
  } else {
    kernel = plan.warp     ? cuda::ce_gradient_warp_kernel<T, kVec>
             : plan.cached ? cuda::ce_gradient_block_kernel<T, kVec, true>
                           : cuda::ce_gradient_block_kernel<T, kVec, false>;
  }
  launch(kernel, static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.threads),
         static_cast<std::size_t>(plan.shared_bytes), p);
}

template <typename T>
void attack_gradient(const AttackGradientParams& p, const cuda::RowPlan& plan) {
  if (plan.vector) {
    attack_gradient_rows<T, 16 / sizeof(T)>(p, plan);
  } else {
    attack_gradient_rows<T, 1>(p, plan);
  }
}

}  // namespace ard::emu
