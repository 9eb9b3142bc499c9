// The gradients that attacks follow: a warp a row up to 1,024 classes, a block a row beyond. Each
// row of logits is read from memory once; for cross-entropy only rows too long for shared memory
// are read again (from L2, as a rule).
//
// A class outside [0, C) cannot be reported from here: the row's loss and gradient become NaN.
#pragma once

#include "core/attack_gradient_math.h"
#include "core/attack_gradient_params.h"
#include "cuda/ce_row.cuh"
#include "cuda/platform.cuh"
#include "cuda/row_loop.cuh"
#include "cuda/top4.cuh"

namespace ard::cuda {

template <typename T, int kVec, bool kCached, typename Group>
__device__ __forceinline__ void ce_gradient_of_row(const AttackGradientParams& p, Group& group,
                                                   int64_t index, T* staged) {
  const float loss = ce_row_loss<T, kVec, kCached>(
      static_cast<const T*>(p.logits) + index * p.logits_stride, p.classes, p.labels[index], staged,
      1.0f, static_cast<T*>(p.grad) + index * p.classes,
      p.grad_scale ? p.grad_scale + index : nullptr, p.correct ? p.correct + index : nullptr,
      group);
  if (p.loss_rows && group.rank() == 0) p.loss_rows[index] = loss;
}

template <typename T, int kVec>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    ce_gradient_warp_kernel(AttackGradientParams p) {
  ARD_DYNAMIC_SHARED(T, shared);
  const int warp = int(threadIdx.x) / 32;
  const int64_t index = int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (index >= p.batch) return;
  constexpr int64_t kAlign = 16 / int64_t(sizeof(T));
  const int64_t padded = (p.classes + kAlign - 1) / kAlign * kAlign;
  WarpGroup group;
  ce_gradient_of_row<T, kVec, true>(p, group, index, shared + warp * padded);
}

template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(1024) ce_gradient_block_kernel(AttackGradientParams p) {
  ARD_DYNAMIC_SHARED(T, shared);
  __shared__ BlockScratch scratch;
  BlockGroup group(scratch);
  ce_gradient_of_row<T, kVec, kCached>(p, group, int64_t(blockIdx.x), shared);
}

template <typename T, int kVec, typename Group>
__device__ __forceinline__ void compared_gradient_of_row(const AttackGradientParams& p,
                                                         Group& group, int64_t index) {
  const T* logits = static_cast<const T*>(p.logits) + index * p.logits_stride;
  Top4 top = top4_empty();
  float nan = 0.0f;
  ARD_FOR_VECTORS(c, p.classes) {
    const Vec<T, kVec> z = load_vec<kVec>(logits + c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float value = to_float(z.v[j]);
      top4_insert(top, Ranked{value, int(c) + j});
      if (value != value) nan = 1.0f;
    }
  }
  top = group.top4(top);
  nan = group.reduce(nan, MaxOp());

  const int64_t label = p.labels[index];
  const int64_t target = p.target_classes ? p.target_classes[index] : label;
  const bool valid = label >= 0 && label < p.classes && target >= 0 && target < p.classes;
  ComparedRow row = compared_row(p.loss, p.kappa, top, valid ? int(label) : 0,
                                 valid ? to_float(logits[label]) : 0.0f, valid ? int(target) : 0,
                                 valid ? to_float(logits[target]) : 0.0f, !valid || nan != 0.0f);
  if (p.grad_scale) {
    const float factor = compared_scale_gradient(row);
    if (group.rank() == 0) p.grad_scale[index] = factor;
  }
  T* grad = static_cast<T*>(p.grad) + index * p.classes;
  ARD_FOR_VECTORS(c, p.classes) {
    Vec<T, kVec> out;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      out.v[j] = finite_from_float<T>(compared_grad(row, int(c) + j));
    }
    store_vec<kVec>(grad + c, out);
  }
  if (p.loss_rows && group.rank() == 0) {
    p.loss_rows[index] = row.loss;
    p.correct[index] = valid && nan == 0.0f && top.at[0].index == row.label;
  }
}

template <typename T, int kVec>
__global__ void __launch_bounds__(32 * kWarpsPerBlock)
    compared_gradient_warp_kernel(AttackGradientParams p) {
  const int64_t index = int64_t(blockIdx.x) * kWarpsPerBlock + int(threadIdx.x) / 32;
  if (index >= p.batch) return;
  RankingWarp group;
  compared_gradient_of_row<T, kVec>(p, group, index);
}

template <typename T, int kVec>
__global__ void __launch_bounds__(1024) compared_gradient_block_kernel(AttackGradientParams p) {
  __shared__ BlockScratch scratch;
  __shared__ Top4 lists[32];
  RankingBlock group(scratch, lists);
  compared_gradient_of_row<T, kVec>(p, group, int64_t(blockIdx.x));
}

}  // namespace ard::cuda
