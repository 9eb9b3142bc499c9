// TRADES and MART with both gradients in one pass over the logits.
//
// A label outside [0, C) cannot be reported from here: the row's loss and gradients become NaN.
#include "losses/pair.h"
#include "losses/rows.cuh"

namespace ard::cuda {

// A class: both rows.
constexpr int staged_floats(bool /*mart*/) { return 2; }

// The cross-entropy of the clean row, from the weights that the KL needs.
struct TradesSums {
  float rest = 0.0f, count = 0.0f;

  __device__ __forceinline__ void loaded(int64_t, float) {}
  template <typename Group>
  __device__ __forceinline__ void all_loaded(Group&) {}

  __device__ __forceinline__ void weighed(float, float clean_weight) {
    rest += ce_rest_of_weight(clean_weight);
    count += ce_count_of_weight(clean_weight);
  }

  template <typename Group>
  __device__ __forceinline__ void all_weighed(Group& group) {
    rest = group.reduce(rest, SumOp());
    count = group.reduce(count, SumOp());
  }
};

// And the cross-entropy of the adversarial row, with the label's rival in it.
struct MartSums {
  TradesSums clean;
  int64_t label;
  float label_logit;
  Largest rival{-INFINITY, 0x7fffffff};
  float max, weight_sum = 0.0f, max_count = 0.0f;

  __device__ __forceinline__ MartSums(int64_t label_, float label_logit_)
      : label(label_), label_logit(label_logit_) {}

  __device__ __forceinline__ void loaded(int64_t c, float adv) {
    if (c != label) rival = larger(rival, Largest{adv, int(c)});
  }

  template <typename Group>
  __device__ __forceinline__ void all_loaded(Group& group) {
    rival = group.reduce(rival, LargerOp());
    max = max_or_second(label_logit, rival.value);
  }

  __device__ __forceinline__ void weighed(float adv, float clean_weight) {
    clean.weighed(adv, clean_weight);
    weight_sum += ce_weight(max, adv);
    max_count += adv == max ? 1.0f : 0.0f;
  }

  template <typename Group>
  __device__ __forceinline__ void all_weighed(Group& group) {
    clean.all_weighed(group);
    weight_sum = group.reduce(weight_sum, SumOp());
    max_count = group.reduce(max_count, SumOp());
  }
};

// Writes both gradients, unless they are null: grads(c, adv, clean weight, KL's gradients to the
// adversarial and the clean logit).
template <typename T, int kVec, bool kCached, typename Group, typename Grads>
__device__ __forceinline__ void write_pair_grads(const PairLossParams& p, const KlRowLogits<T>& z,
                                                 const KdRow& row, int64_t index, Group& group,
                                                 const Grads& grads) {
  if (!p.grad_adv) return;
  T* grad_adv = static_cast<T*>(p.grad_adv) + index * p.classes;
  T* grad_clean = static_cast<T*>(p.grad_clean) + index * p.classes;
  const float close_factor = 1.0f / (1.0f + row.excess);
  ARD_FOR_VECTORS(c) {
    const Vec<T, kVec> s = row_vec<kVec, kCached>(group, z.student, z.staged_student, c);
    const Vec<T, kVec> t = row_vec<kVec, kCached>(group, z.teacher, z.staged_teacher, c);
    Vec<T, kVec> out_adv, out_clean;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float adv = to_float(s.v[j]), clean = to_float(t.v[j]);
      float gap;
      const KdWeighed e = kd_weigh(row, false, adv, clean, gap);
      const PairGrads both =
          grads(c + j, adv, e.weight, kd_student_grad(row, adv, clean, close_factor),
                kd_teacher_grad(row, e.gap, e.weight));
      out_adv.v[j] = from_float<T>(both.adv);
      out_clean.v[j] = from_float<T>(both.clean);
    }
    store_vec<kVec>(grad_adv + c, out_adv);
    store_vec<kVec>(grad_clean + c, out_clean);
  }
}

template <typename T, int kVec, bool kCached, bool kMart, typename Group>
__device__ __forceinline__ float pair_loss_of_row(const PairLossParams& p, Group& group,
                                                  float* staging) {
  const int64_t index = group.row();
  KlRowLogits<T> z;
  z.student = static_cast<const T*>(p.adv) + index * p.adv_stride;
  z.teacher = static_cast<const T*>(p.clean) + index * p.clean_stride;
  z.staged_student = reinterpret_cast<T*>(staging);
  z.staged_teacher = reinterpret_cast<T*>(staging + group.room());
  z.classes = p.classes;
  z.teacher_is_staged = false;
  const int64_t given = p.labels[index];
  const bool valid = given >= 0 && given < p.classes;
  const int64_t label = valid ? given : 0;
  const float row_weight = p.weight ? p.weight[index] : 1.0f;
  const float weight = valid ? row_weight : NAN;
  const PairTerms grad_weight{weight * p.kl_grad_weight, weight * p.ce_grad_weight};
  const float clean_logit = to_float(z.teacher[label]);

  // Before the gradients: what a loss is made of need not be kept until they are done.
  const auto store_loss = [&](PairTerms terms) {
    const float loss = weighted_loss(weight, p.kl_weight, terms.kl, p.ce_weight, terms.ce);
    if (group.leads()) p.loss_rows[index] = loss;
    return loss;
  };

  KdRow row;
  float loss;
  if constexpr (kMart) {
    const float adv_logit = to_float(z.student[label]);
    MartSums sums(label, adv_logit);
    const float kl = kl_row<kVec, kCached>(z, 1.0f, 1.0f, group, row, sums);
    const MartRow mart =
        mart_row(ce_row(sums.max, sums.weight_sum, sums.max_count), sums.rival.value,
                 ce_row(row.teacher_ref, sums.clean.rest, sums.clean.count),
                 exp_f32(clean_logit - row.teacher_ref));
    loss = store_loss(mart_terms(mart, adv_logit, kl));
    write_pair_grads<T, kVec, kCached>(
        p, z, row, index, group,
        [&](int64_t c, float adv, float clean_weight, float to_adv, float to_clean) {
          return PairGrads{
              mart_adv_grad(mart, adv, c == label, c == sums.rival.index, to_adv, grad_weight),
              mart_clean_grad(mart, clean_weight, c == label, kl, to_clean, grad_weight)};
        });
  } else {
    TradesSums sums;
    const float kl = kl_row<kVec, kCached>(z, 1.0f, 1.0f, group, row, sums);
    const CeRow ce = ce_row(row.teacher_ref, sums.rest, sums.count);
    loss = store_loss(PairTerms{kl, ce_loss(ce, clean_logit)});
    write_pair_grads<T, kVec, kCached>(
        p, z, row, index, group,
        [&](int64_t c, float, float clean_weight, float to_adv, float to_clean) {
          return PairGrads{grad_weight.kl * to_adv,
                           trades_clean_grad(ce, clean_weight, c == label, to_clean, grad_weight)};
        });
  }
  return loss;
}

template <typename T, int kVec, int kLanes, bool kCached, bool kMart>
__global__ void __launch_bounds__(kMaxRowThreads) pair_loss_kernel(PairLossParams p, float* total) {
  ARD_DYNAMIC_SHARED(float, shared);
  RowGroup<kLanes> group(p.classes, kVec);
  float loss = 0.0f;
  if (group.row() < p.batch) {
    loss = pair_loss_of_row<T, kVec, kCached, kMart>(p, group,
                                                     group.staging(shared, staged_floats(kMart)));
  }
  write_total(group, loss, total);
}

// item_size: bytes of one logit.
inline RowPlan plan_pair_loss(const DeviceLimits& device, const PairLossParams& p, int item_size,
                              bool total) {
  const int vec = 16 / item_size;
  const bool vector = p.classes % vec == 0 && p.adv_stride % vec == 0 &&
                      p.clean_stride % vec == 0 && aligned16(p.adv) && aligned16(p.clean) &&
                      aligned16(p.grad_adv) && aligned16(p.grad_clean);
  return plan_rows(device, p.batch, p.classes, vector ? vec : 1, staged_floats(p.mart), total);
}

void launch_pair_loss(const PairLossParams& p, Dtype dtype, float* total, Stream stream) {
  bool summed = false;
  if (p.batch > 0) {
    for_dtype(dtype, [&](auto example) {
      using T = decltype(example);
      const DeviceLimits device = device_limits<pair_loss_kernel<T, 1, 32, true, false>>();
      const RowPlan plan = plan_pair_loss(device, p, sizeof(T), total != nullptr);
      summed = plan.sums;
      for_row_variant<T>(plan, [&](auto vec, auto lanes, auto cached) {
        for_bool(p.mart, [&](auto mart) {
          start<pair_loss_kernel<T, vec.value, lanes.value, cached.value, mart.value>>(
              geometry_of(plan), stream, p, summed ? total : nullptr);
        });
      });
    });
  }
  if (total && !summed) launch_sum_rows(p.loss_rows, p.batch, total, stream);
}

}  // namespace ard::cuda
