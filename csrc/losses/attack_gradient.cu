// The gradients that attacks follow. Each row of logits is read from memory once; for cross-entropy
// only rows too long for shared memory are read again (from L2, as a rule).
//
// A class outside [0, C) cannot be reported from here: the row's loss and gradient become NaN.
#include "losses/attack_gradient.h"
#include "losses/rows.cuh"

namespace ard::cuda {

template <typename T, int kVec, int kLanes, bool kCached>
__global__ void __launch_bounds__(kMaxRowThreads) ce_gradient_kernel(AttackGradientParams p) {
  ARD_DYNAMIC_SHARED(float, shared);
  RowGroup<kLanes> group(p.classes, kVec);
  const int64_t index = group.row();
  if (index >= p.batch) return;
  const float loss = ce_row_loss<T, kVec, kCached>(
      static_cast<const T*>(p.logits) + index * p.logits_stride, p.classes, p.labels[index],
      reinterpret_cast<T*>(group.staging(shared, 1)), 1.0f,
      static_cast<T*>(p.grad) + index * p.classes, p.grad_scale ? p.grad_scale + index : nullptr,
      p.correct ? p.correct + index : nullptr, group);
  if (p.loss_rows && group.leads()) p.loss_rows[index] = loss;
}

// Of two rankings: their upper half is, entry by entry, the better of one and of the other read
// backwards, and two rounds of exchanges put that in order (a bitonic merge).
struct MergeOp {
  __device__ __forceinline__ Top4 operator()(const Top4& a, const Top4& b) const {
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
};

template <typename T, int kVec, int kLanes>
__global__ void __launch_bounds__(kMaxRowThreads) compared_gradient_kernel(AttackGradientParams p) {
  RowGroup<kLanes> group(p.classes, kVec);
  const int64_t index = group.row();
  if (index >= p.batch) return;
  const T* logits = static_cast<const T*>(p.logits) + index * p.logits_stride;
  Top4 top = top4_empty();
  float nan = 0.0f;
  ARD_FOR_VECTORS(c) {
    const Vec<T, kVec> z = load_vec<kVec>(logits + c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float value = to_float(z.v[j]);
      top4_insert(top, Ranked{value, int(c) + j});
      if (value != value) nan = 1.0f;
    }
  }
  top = group.reduce(top, MergeOp());
  nan = group.reduce(nan, MaxOp());

  const int64_t label = p.labels[index];
  const int64_t target = p.target_classes ? p.target_classes[index] : label;
  const bool valid = label >= 0 && label < p.classes && target >= 0 && target < p.classes;
  ComparedRow row = compared_row(p.loss, p.kappa, top, valid ? int(label) : 0,
                                 valid ? to_float(logits[label]) : 0.0f, valid ? int(target) : 0,
                                 valid ? to_float(logits[target]) : 0.0f, !valid || nan != 0.0f);
  if (p.grad_scale) {
    const float factor = compared_scale_gradient(row);
    if (group.leads()) p.grad_scale[index] = factor;
  }
  T* grad = static_cast<T*>(p.grad) + index * p.classes;
  ARD_FOR_VECTORS(c) {
    Vec<T, kVec> out;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      out.v[j] = finite_from_float<T>(compared_grad(row, int(c) + j));
    }
    store_vec<kVec>(grad + c, out);
  }
  if (p.loss_rows && group.leads()) {
    p.loss_rows[index] = row.loss;
    p.correct[index] = valid && nan == 0.0f && top.at[0].index == row.label;
  }
}

// item_size: bytes of one logit.
inline RowPlan plan_attack_gradient(const DeviceLimits& device, const AttackGradientParams& p,
                                    int item_size) {
  const int vec = 16 / item_size;
  const bool vector = p.classes % vec == 0 && p.logits_stride % vec == 0 && aligned16(p.logits) &&
                      aligned16(p.grad);
  const int staged = p.loss == AttackLoss::ce ? 1 : 0;
  return plan_rows(device, p.batch, p.classes, vector ? vec : 1, staged, false);
}

void launch_attack_gradient(const AttackGradientParams& p, Dtype dtype, Stream stream) {
  if (p.batch == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const DeviceLimits device = device_limits<ce_gradient_kernel<T, 1, 32, true>>();
    const RowPlan plan = plan_attack_gradient(device, p, sizeof(T));
    for_row_variant<T>(plan, [&](auto vec, auto lanes, auto cached) {
      constexpr int kVec = vec.value, kLanes = lanes.value;
      if (p.loss == AttackLoss::ce) {
        start<ce_gradient_kernel<T, kVec, kLanes, cached.value>>(geometry_of(plan), stream, p);
      } else if constexpr (cached.value) {  // they stage nothing
        start<compared_gradient_kernel<T, kVec, kLanes>>(geometry_of(plan), stream, p);
      }
    });
  });
}

}  // namespace ard::cuda
