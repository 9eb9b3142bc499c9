// TRADES and MART launched on the emulator with the geometry that the CUDA launcher would choose.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/pair_loss_kernels.cuh"
#include "cuda/pair_plan.h"

namespace ard::emu {

template <typename T, int kVec, bool kMart>
void pair_loss_rows(const PairLossParams& p, const cuda::RowPlan& plan) {
  auto* const kernel = plan.warp     ? cuda::pair_loss_warp_kernel<T, kVec, kMart>
                       : plan.cached ? cuda::pair_loss_block_kernel<T, kVec, kMart, true>
                                     : cuda::pair_loss_block_kernel<T, kVec, kMart, false>;
  launch(kernel, static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.threads),
         static_cast<std::size_t>(plan.shared_bytes), p);
}

template <typename T, int kVec>
void pair_loss_of(const PairLossParams& p, const cuda::RowPlan& plan) {
  if (p.mart) {
    pair_loss_rows<T, kVec, true>(p, plan);
  } else {
    pair_loss_rows<T, kVec, false>(p, plan);
  }
}

template <typename T>
void pair_loss(const PairLossParams& p, const cuda::RowPlan& plan) {
  if (plan.blocks == 0) return;
  if (plan.vector) {
    pair_loss_of<T, 16 / sizeof(T)>(p, plan);
  } else {
    pair_loss_of<T, 1>(p, plan);
  }
}

/// The plan that the launcher would choose on sm_90.
template <typename T>
cuda::RowPlan pair_loss_plan(const PairLossParams& p) {
  return cuda::plan_pair_loss(p, sizeof(T), 227 * 1024 - int64_t{sizeof(cuda::BlockScratch)});
}

/// The plan for a block of `threads` a row, where the launcher would give small rows to a warp.
template <typename T>
cuda::RowPlan pair_loss_block_plan(const PairLossParams& p, int threads, bool cached) {
  cuda::RowPlan plan = pair_loss_plan<T>(p);
  const int64_t row_bytes = 2 * cuda::ceil_div(p.classes * int64_t{sizeof(T)}, 16) * 16;
  plan.warp = false;
  plan.cached = cached;
  plan.threads = threads;
  plan.blocks = p.batch;
  plan.shared_bytes = cached ? row_bytes : 0;
  return plan;
}

}  // namespace ard::emu
