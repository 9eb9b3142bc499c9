// The gradients that attacks follow. Each row of logits is read from memory once; for cross-entropy
// only rows too long for shared memory are read again (from L2, as a rule).
//
// A class outside [0, C) cannot be reported from here: the row's loss and gradient become NaN.
#include "losses/attack_gradient.h"
#include "losses/rows.cuh"

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

// Of two rankings: their upper half is, entry by entry, the better of one and of the other read
// backwards, and two rounds of exchanges put that in order (a bitonic merge).
__device__ __forceinline__ Top4 merged(const Top4& a, const Top4& b) {
  Top4 out = a;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (ranks_before(b.at[3 - k], a.at[k])) out.at[k] = b.at[3 - k];
  }
  put_in_order(out.at[0], out.at[2]);
  put_in_order(out.at[1], out.at[3]);
  put_in_order(out.at[0], out.at[1]);
  put_in_order(out.at[2], out.at[3]);
  return out;
}

__device__ __forceinline__ Top4 warp_top4(Top4 mine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    Top4 other;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      other.at[k].value = __shfl_xor_sync(0xffffffffu, mine.at[k].value, lanes);
      other.at[k].index = __shfl_xor_sync(0xffffffffu, mine.at[k].index, lanes);
    }
    mine = merged(mine, other);
  }
  return mine;
}

struct RankingWarp : WarpGroup {
  __device__ __forceinline__ Top4 top4(const Top4& mine) { return warp_top4(mine); }
};

// Called once by every thread of the block.
struct RankingBlock : BlockGroup {
  Top4* lists;  // [32], shared

  __device__ __forceinline__ RankingBlock(BlockScratch& scratch, Top4* shared_lists)
      : BlockGroup(scratch), lists(shared_lists) {}

  __device__ __forceinline__ Top4 top4(const Top4& mine) {
    const Top4 of_warp = warp_top4(mine);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    if (lane == 0) lists[warp] = of_warp;
    __syncthreads();
    return warp_top4(lane < int(blockDim.x) / 32 ? lists[lane] : top4_empty());
  }
};

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

// max_shared: shared memory that one block may have, in bytes. item_size: bytes of one logit.
inline RowPlan plan_attack_gradient(const AttackGradientParams& p, int item_size,
                                    int64_t max_shared) {
  const int vec = 16 / item_size;
  RowPlan plan{};
  plan.vector = p.classes % vec == 0 && p.logits_stride % vec == 0 && aligned16(p.logits) &&
                aligned16(p.grad);
  const int64_t row_bytes = p.loss == AttackLoss::ce ? ceil_div(p.classes * item_size, 16) * 16 : 0;
  plan_rows(plan, p.batch, p.classes, row_bytes, max_shared);
  return plan;
}

void launch_attack_gradient(const AttackGradientParams& p, Dtype dtype, Stream stream) {
  if (p.batch == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const RowPlan plan =
        plan_attack_gradient(p, sizeof(T), max_dynamic_shared(sizeof(BlockScratch)));
    const Geometry geometry = geometry_of(plan);
    for_bools(plan.warp, plan.vector, [&](auto warp, auto vector) {
      constexpr int kVec = vector.value ? 16 / sizeof(T) : 1;
      if constexpr (warp.value) {
        p.loss == AttackLoss::ce
            ? start<ce_gradient_warp_kernel<T, kVec>>(geometry, stream, p)
            : start<compared_gradient_warp_kernel<T, kVec>>(geometry, stream, p);
      } else if (p.loss != AttackLoss::ce) {
        start<compared_gradient_block_kernel<T, kVec>>(geometry, stream, p);
      } else {
        for_bool(plan.cached, [&](auto cached) {
          start<ce_gradient_block_kernel<T, kVec, cached.value>>(geometry, stream, p);
        });
      }
    });
  });
}

}  // namespace ard::cuda
