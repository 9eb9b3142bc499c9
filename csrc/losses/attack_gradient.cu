// The gradients that attacks follow. Each row of logits is read from memory once; rows of
// cross-entropy too long for shared memory, and those of the other losses, are read again from a
// cache, as a rule.
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
      group.staging(shared, 1), 1.0f, static_cast<T*>(p.grad) + index * p.classes,
      p.grad_scale ? p.grad_scale + index : nullptr, p.correct ? p.correct + index : nullptr,
      group);
  if (p.loss_rows && group.leads()) p.loss_rows[index] = loss;
}

// Four numbers, the largest first, and whether there was a NaN.
struct FourLargest {
  float at[4];
  uint32_t nan;
};

// The upper half of two such lists is, entry by entry, the larger of one and of the other read
// backwards, and two rounds of exchanges put that in order (a bitonic merge).
struct FourLargestOp {
  __device__ __forceinline__ FourLargest operator()(const FourLargest& a,
                                                    const FourLargest& b) const {
    FourLargest out;
#pragma unroll
    for (int k = 0; k < 4; ++k) out.at[k] = fmaxf(a.at[k], b.at[3 - k]);
    const auto exchange = [&](int first, int second) {
      const float larger = fmaxf(out.at[first], out.at[second]);
      out.at[second] = fminf(out.at[first], out.at[second]);
      out.at[first] = larger;
    };
    exchange(0, 2);
    exchange(1, 3);
    exchange(0, 1);
    exchange(2, 3);
    out.nan = a.nan | b.nan;
    return out;
  }
};

// The row is read twice, the second time from a cache: for a bound that few logits reach, and for
// those with their places.
template <typename T, int kVec, int kLanes>
__global__ void __launch_bounds__(kMaxRowThreads) compared_gradient_kernel(AttackGradientParams p) {
  RowGroup<kLanes> group(p.classes, kVec);
  const int64_t index = group.row();
  if (index >= p.batch) return;
  const T* logits = static_cast<const T*>(p.logits) + index * p.logits_stride;
  const auto loaded = [&](int c) { return to_floats(load_vec<kVec>(logits + c)); };
  const int ranks = p.loss == AttackLoss::margin ? 2 : p.loss == AttackLoss::dlr ? 3 : 4;

  float largest = -INFINITY;
  bool nan = false;
#pragma unroll 2
  ARD_FOR_VECTORS(c) {
    const Floats<kVec> z = loaded(c);
    largest = fmaxf(largest, largest_of(z));
#pragma unroll
    for (int j = 0; j < kVec; j += 2) nan |= either_nan(z[j], z[j + (kVec > 1)]);
  }
  // As many logits as the gradient compares are no smaller than that many threads' largest.
  const FourLargest threads = group.reduce(
      FourLargest{{largest, -INFINITY, -INFINITY, -INFINITY}, uint32_t(nan)}, FourLargestOp());
  nan = threads.nan != 0;
  const float bound = ranks == 2 ? threads.at[1] : ranks == 3 ? threads.at[2] : threads.at[3];

  Top4 mine = top4_empty();
  if (largest >= bound) {
    ARD_FOR_VECTORS(c) {
      if (!(largest_of(loaded(c)) >= bound)) continue;
#pragma unroll 1
      for (int j = c; j < c + kVec; ++j) {
        const float value = to_float(logits[j]);
        if (value >= bound) top4_insert(mine, Ranked{value, j});
      }
    }
  }
  Top4 top = top4_empty();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (k >= ranks) break;
    const Largest next = group.reduce(Largest{mine.at[0].value, mine.at[0].index}, LargerOp());
    top.at[k] = Ranked{next.value, next.index};
    if (mine.at[0].index != next.index) continue;
#pragma unroll
    for (int n = 0; n < 3; ++n) mine.at[n] = mine.at[n + 1];
    mine.at[3] = Ranked{-INFINITY, kNoClass};
  }

  const int64_t label = p.labels[index];
  const int64_t target = p.target_classes ? p.target_classes[index] : label;
  const bool valid = label >= 0 && label < p.classes && target >= 0 && target < p.classes;
  ComparedRow row = compared_row(p.loss, p.kappa, top, valid ? int(label) : 0,
                                 valid ? to_float(logits[label]) : 0.0f, valid ? int(target) : 0,
                                 valid ? to_float(logits[target]) : 0.0f, !valid || nan);
  if (p.grad_scale) {
    const float factor = compared_scale_gradient(row);
    if (group.leads()) p.grad_scale[index] = factor;
  }
  T* grad = static_cast<T*>(p.grad) + index * p.classes;
  Vec<T, kVec> others;  // 0, or NaN
#pragma unroll
  for (int j = 0; j < kVec; ++j) others.v[j] = from_float<T>(row.scale * 0.0f);
#pragma unroll 2
  ARD_FOR_VECTORS(c) store_vec<kVec>(grad + c, others);
  group.sync();
  const int rank = group.rank();
  const int c = rank == 0   ? row.label
                : rank == 1 ? row.other
                : rank == 2 ? row.first_class
                : rank == 3 ? row.third_class
                : rank == 4 ? row.fourth_class
                            : kNoClass;
  if (c >= group.begin() && c < group.end()) grad[c] = finite_from_float<T>(compared_grad(row, c));
  if (p.loss_rows && group.leads()) {
    p.loss_rows[index] = row.loss;
    p.correct[index] = valid && !nan && top.at[0].index == row.label;
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
