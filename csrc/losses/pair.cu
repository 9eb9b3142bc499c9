// TRADES and MART with both gradients in one pass over the logits.
//
// A label outside [0, C) cannot be reported from here: the row's loss and gradients become NaN.
#include "losses/kl_row.cuh"
#include "losses/pair.h"

namespace ard::cuda {

// Floats in shared memory, a class.
constexpr int kPairFloats = 2;

// The clean row's weights, for its cross-entropy: see ce_rest_of_weight.
struct TradesSums {
  static constexpr bool kStudentMax = false;
  float rest = 0.0f, count = 0.0f;

  __device__ __forceinline__ void add(int64_t, float, int, float, float clean_weight) {
    if (clean_weight == 1.0f) {
      count += 1.0f;
    } else {
      rest += clean_weight;
    }
  }
  __device__ __forceinline__ float weight() const { return rest + count; }
  __device__ __forceinline__ TradesSums plus(const TradesSums& other) const {
    TradesSums out;
    out.rest = rest + other.rest;
    out.count = count + other.count;
    return out;
  }
};

// And those of the adversarial row, with the label's rival in it.
struct MartSums : TradesSums {
  static constexpr bool kStudentMax = true;
  float adv_rest = 0.0f, adv_count = 0.0f;
  Largest rival{-INFINITY, 0x7fffffff};

  __device__ __forceinline__ void add(int64_t label, float adv_max, int c, float adv,
                                      float clean_weight) {
    TradesSums::add(label, adv_max, c, adv, clean_weight);
    const float weight = exp2_fast((adv - adv_max) * kLog2E);
    if (adv == adv_max) {
      adv_count += 1.0f;
    } else {
      adv_rest += weight;
    }
    if (adv > rival.value && c != label) rival = Largest{adv, c};  // classes come in their order
  }
  __device__ __forceinline__ MartSums plus(const MartSums& other) const {
    MartSums out;
    static_cast<TradesSums&>(out) = TradesSums::plus(other);
    out.adv_rest = adv_rest + other.adv_rest;
    out.adv_count = adv_count + other.adv_count;
    out.rival = larger(rival, other.rival);
    return out;
  }
};

// One row, and what its loss and gradients are computed from.
template <typename T>
struct PairRow {
  KlLogits<T> z;
  int64_t label;
  float adv_logit, clean_logit;  // of the label
  PairTerms grad_weight;
  T* grad_adv;  // both null where there are no gradients
  T* grad_clean;
};

// A quick row's gradients to the clean logits, from the terms of its KL.
struct CleanFactors {
  float by_weight, by_gap;
  float at_label;  // takes the place of by_weight * weight

  __device__ __forceinline__ float other(const KlTerm& e) const {
    return fmaf(-by_gap, e.x, by_weight) * e.weight;
  }
  __device__ __forceinline__ float label(const KlTerm& e) const {
    return fmaf(-by_gap, e.weight * e.x, at_label);
  }
};

template <int kVec, typename T, typename Group>
__device__ __forceinline__ PairTerms quick_trades_row(const PairRow<T>& r, KlRow& row,
                                                      const TradesSums& sums, Group& group) {
  const KlLogits<T>& z = r.z;
  const CeRow ce = ce_row(row.teacher_ref, sums.rest, sums.count);
  const float label_weight = exp2_fast((r.clean_logit - row.teacher_ref) * kLog2E);
  const CleanFactors clean{r.grad_weight.ce * ce.inv_sum, r.grad_weight.kl * row.inv_z,
                           r.grad_weight.ce * ce_grad_of_weight(ce, label_weight, true)};
  const int label = int(r.label) - group.begin();
  const float sum = for_kl_terms<kVec>(z, row, group, [&](int n, const KlTerm(&terms)[kVec]) {
    Floats<kVec> diff, weight, to_clean;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      diff[j] = terms[j].diff;
      weight[j] = terms[j].weight;
      to_clean[j] = clean.other(terms[j]);
    }
    if (!r.grad_clean) return;
    if (unsigned(label - n) < unsigned(kVec)) {
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        if (n + j == label) to_clean[j] = clean.label(terms[j]);
      }
    }
    store_vec<kVec>(r.grad_clean + group.begin() + n, from_floats<T>(to_clean));
    stage<kVec>(z.first, n, diff);
    stage<kVec>(z.second, n, weight);
  });
  const float kl = kl_of_sum(row, sum, group);
  if (r.grad_adv) {
    const float factor = r.grad_weight.kl * row.inv_z * (1.0f / (1.0f + row.excess));
#pragma unroll 1
    ARD_FOR_SHARE(n) {
      Floats<kVec> out = staged<kVec>(z.first, n);
      const Floats<kVec> weight = staged<kVec>(z.second, n);
#pragma unroll
      for (int j = 0; j < kVec; ++j) out[j] = fmaf(-row.excess, weight[j], out[j]) * factor;
      store_vec<kVec>(r.grad_adv + group.begin() + n, from_floats<T>(out));
    }
  }
  return PairTerms{kl, ce_loss(ce, r.clean_logit)};
}

template <int kVec, typename T, typename Group>
__device__ __forceinline__ PairTerms quick_mart_row(const PairRow<T>& r, KlRow& row,
                                                    const MartSums& sums, Group& group) {
  const auto nothing = [](int, const KlTerm(&)[kVec]) {};
  const float kl = kl_of_sum(row, for_kl_terms<kVec>(r.z, row, group, nothing), group);
  const float label_weight = exp2_fast((r.clean_logit - row.teacher_ref) * kLog2E);
  const MartRow mart =
      mart_row(ce_row(row.student_max, sums.adv_rest, sums.adv_count), sums.rival.value,
               ce_row(row.teacher_ref, sums.rest, sums.count), label_weight);
  if (r.grad_adv) {
    const float p_factor = row.inv_z * (1.0f / (1.0f + row.excess));
    const float by_student = r.grad_weight.ce * (1.0f - mart.slope) * p_factor;
    const float by_diff = r.grad_weight.kl * mart.doubt * p_factor;
    const PairTerms ce_only{0.0f, r.grad_weight.ce};
    const float at_label = mart_adv_grad(mart, r.adv_logit, true, false, 0.0f, ce_only);
    const float at_rival = mart_adv_grad(mart, sums.rival.value, false, true, 0.0f, ce_only);
    const float by_doubt = r.grad_weight.kl * kl * mart.q_label;
    const CleanFactors clean{by_doubt * mart.clean.inv_sum,
                             r.grad_weight.kl * mart.doubt * row.inv_z,
                             by_doubt * ce_grad_of_weight(mart.clean, label_weight, true)};
    const int label = int(r.label) - group.begin(), rival = sums.rival.index - group.begin();
    for_kl_terms<kVec>(r.z, row, group, [&](int n, const KlTerm(&terms)[kVec]) {
      Floats<kVec> to_adv, to_clean;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const KlTerm& e = terms[j];
        const float kl_grad = fmaf(-row.excess, e.weight, e.diff);
        to_adv[j] = fmaf(by_diff, kl_grad, by_student * e.student);
        to_clean[j] = clean.other(e);
      }
      if (unsigned(label - n) < unsigned(kVec) || unsigned(rival - n) < unsigned(kVec)) {
#pragma unroll
        for (int j = 0; j < kVec; ++j) {
          const KlTerm& e = terms[j];
          const float kl_grad = fmaf(-row.excess, e.weight, e.diff);
          if (n + j == label) to_adv[j] = fmaf(by_diff, kl_grad, at_label);
          if (n + j == rival) to_adv[j] = fmaf(by_diff, kl_grad, at_rival);
          if (n + j == label) to_clean[j] = clean.label(e);
        }
      }
      store_vec<kVec>(r.grad_adv + group.begin() + n, from_floats<T>(to_adv));
      store_vec<kVec>(r.grad_clean + group.begin() + n, from_floats<T>(to_clean));
    });
  }
  return mart_terms(mart, r.adv_logit, kl);
}

// grads(c, adversarial logit, clean weight, the KL's gradients to the adversarial and the clean
// logit) of every class.
template <typename T, typename Group, typename Grads>
__device__ __forceinline__ void write_slow_grads(const PairRow<T>& r, const KdRow& row,
                                                 Group& group, const Grads& grads) {
  constexpr int kVec = 1;
  if (!r.grad_adv) return;
  const float close_factor = 1.0f / (1.0f + row.excess);
#pragma unroll 1
  ARD_FOR_VECTORS(c) {
    const float adv = to_float(r.z.student[c]), clean = to_float(r.z.teacher[c]);
    float gap;
    const KdWeighed e = kd_weigh(row, false, adv, clean, gap);
    const PairGrads both = grads(c, adv, e.weight, kd_student_grad(row, adv, clean, close_factor),
                                 kd_teacher_grad(row, e.gap, e.weight));
    r.grad_adv[c] = from_float<T>(both.adv);
    r.grad_clean[c] = from_float<T>(both.clean);
  }
}

template <typename T, typename Group>
__device__ __forceinline__ PairTerms slow_pair_row(const PairRow<T>& r, const KdRow& row, float kl,
                                                   const TradesSums& sums, Group& group) {
  const CeRow ce = ce_row(row.teacher_ref, sums.rest, sums.count);
  write_slow_grads(
      r, row, group, [&](int c, float, float clean_weight, float to_adv, float to_clean) {
        return PairGrads{
            r.grad_weight.kl * to_adv,
            trades_clean_grad(ce, clean_weight, c == r.label, to_clean, r.grad_weight)};
      });
  return PairTerms{kl, ce_loss(ce, r.clean_logit)};
}

template <typename T, typename Group>
__device__ __forceinline__ PairTerms slow_pair_row(const PairRow<T>& r, const KdRow& row, float kl,
                                                   const MartSums& sums, Group& group) {
  const float adv_max = max_or_second(r.adv_logit, sums.rival.value);
  const MartRow mart = mart_row(ce_row(adv_max, sums.adv_rest, sums.adv_count), sums.rival.value,
                                ce_row(row.teacher_ref, sums.rest, sums.count),
                                exp_f32(r.clean_logit - row.teacher_ref));
  write_slow_grads(
      r, row, group, [&](int c, float adv, float clean_weight, float to_adv, float to_clean) {
        const bool is_label = c == r.label;
        return PairGrads{
            mart_adv_grad(mart, adv, is_label, c == sums.rival.index, to_adv, r.grad_weight),
            mart_clean_grad(mart, clean_weight, is_label, kl, to_clean, r.grad_weight)};
      });
  return mart_terms(mart, r.adv_logit, kl);
}

template <typename T, int kVec, bool kCached, bool kMart, typename Group>
__device__ __forceinline__ PairTerms pair_terms_of_row(const PairRow<T>& r, Group& group) {
  std::conditional_t<kMart, MartSums, TradesSums> sums;
  const auto add = [&](auto& to, float adv_max, int c, float adv, float clean_weight) {
    to.add(r.label, adv_max, c, adv, clean_weight);
  };
  if constexpr (kCached) {
    KlRow row;
    if (kl_row<kVec>(r.z, group, row, sums, add)) {
      if constexpr (kMart) return quick_mart_row<kVec>(r, row, sums, group);
      if constexpr (!kMart) return quick_trades_row<kVec>(r, row, sums, group);
    }
  }
  KdRow row;
  const float kl = slow_kl_row(r.z, group, row, sums, add);
  return slow_pair_row(r, row, kl, sums, group);
}

template <typename T, int kVec, bool kCached, bool kMart, typename Group>
__device__ __forceinline__ float pair_loss_of_row(const PairLossParams& p, Group& group,
                                                  float* staging) {
  const int64_t index = group.row();
  const int64_t given = p.labels[index];
  const bool valid = given >= 0 && given < p.classes;
  const float row_weight = p.weight ? p.weight[index] : 1.0f;
  const float weight = valid ? row_weight : NAN;
  PairRow<T> r;
  r.z.student = static_cast<const T*>(p.adv) + index * p.adv_stride;
  r.z.teacher = static_cast<const T*>(p.clean) + index * p.clean_stride;
  r.z.inv_temperature = r.z.inv_teacher_temperature = 1.0f;
  r.z.first = staging;
  r.z.second = staging + group.room();
  r.label = valid ? given : 0;
  r.adv_logit = to_float(r.z.student[r.label]);
  r.clean_logit = to_float(r.z.teacher[r.label]);
  r.grad_weight = PairTerms{weight * p.kl_grad_weight, weight * p.ce_grad_weight};
  r.grad_adv = p.grad_adv ? static_cast<T*>(p.grad_adv) + index * p.classes : nullptr;
  r.grad_clean = p.grad_adv ? static_cast<T*>(p.grad_clean) + index * p.classes : nullptr;
  const PairTerms terms = pair_terms_of_row<T, kVec, kCached, kMart>(r, group);
  const float loss = weighted_loss(weight, p.kl_weight, terms.kl, p.ce_weight, terms.ce);
  if (group.leads()) p.loss_rows[index] = loss;
  return loss;
}

template <typename T, int kVec, int kLanes, bool kCached, bool kMart>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    pair_loss_kernel(PairLossParams p, float* total) {
  ARD_DYNAMIC_SHARED(float, shared);
  RowGroup<kLanes> group(p.classes, kVec);
  float loss = 0.0f;
  if (group.row() < p.batch) {
    loss = pair_loss_of_row<T, kVec, kCached, kMart>(p, group, group.staging(shared, kPairFloats));
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
  return plan_rows(device, p.batch, p.classes, vector ? vec : 1, kPairFloats, total);
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
