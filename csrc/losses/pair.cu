// TRADES and MART with both gradients in one pass over the logits.
//
// A label outside [0, C) cannot be reported from here: the row's loss and gradients become NaN.
#include "losses/pair.h"
#include "losses/rows.cuh"

namespace ard::cuda {

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
    rival = group.largest(rival);
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
  ARD_FOR_VECTORS(c, z.classes) {
    const Vec<T, kVec> s = row_vec<kVec, kCached>(z.student, z.staged_student, c);
    const Vec<T, kVec> t = row_vec<kVec, kCached>(z.teacher, z.staged_teacher, c);
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
__device__ __forceinline__ void pair_loss_of_row(const PairLossParams& p, Group& group,
                                                 int64_t index, T* staged) {
  KlRowLogits<T> z;
  z.student = static_cast<const T*>(p.adv) + index * p.adv_stride;
  z.teacher = static_cast<const T*>(p.clean) + index * p.clean_stride;
  z.staged_student = staged;
  z.staged_teacher = staged + padded_row<T>(p.classes);
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
    if (group.rank() != 0) return;
    p.loss_rows[index] = weighted_loss(weight, p.kl_weight, terms.kl, p.ce_weight, terms.ce);
  };

  KdRow row;
  if constexpr (kMart) {
    const float adv_logit = to_float(z.student[label]);
    MartSums sums(label, adv_logit);
    const float kl = kl_row<kVec, kCached>(z, 1.0f, 1.0f, group, row, sums);
    const MartRow mart =
        mart_row(ce_row(sums.max, sums.weight_sum, sums.max_count), sums.rival.value,
                 ce_row(row.teacher_ref, sums.clean.rest, sums.clean.count),
                 exp_f32(clean_logit - row.teacher_ref));
    store_loss(mart_terms(mart, adv_logit, kl));
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
    store_loss(PairTerms{kl, ce_loss(ce, clean_logit)});
    write_pair_grads<T, kVec, kCached>(
        p, z, row, index, group,
        [&](int64_t c, float, float clean_weight, float to_adv, float to_clean) {
          return PairGrads{grad_weight.kl * to_adv,
                           trades_clean_grad(ce, clean_weight, c == label, to_clean, grad_weight)};
        });
  }
}

template <typename T, int kVec, bool kMart>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) pair_loss_warp_kernel(PairLossParams p) {
  ARD_DYNAMIC_SHARED(T, shared);
  const int warp = int(threadIdx.x) / 32;
  const int64_t index = int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (index >= p.batch) return;
  WarpGroup group;
  pair_loss_of_row<T, kVec, true, kMart>(p, group, index,
                                         shared + warp * 2 * padded_row<T>(p.classes));
}

template <typename T, int kVec, bool kMart, bool kCached>
__global__ void __launch_bounds__(1024) pair_loss_block_kernel(PairLossParams p) {
  ARD_DYNAMIC_SHARED(T, shared);
  __shared__ BlockScratch scratch;
  BlockGroup group(scratch);
  pair_loss_of_row<T, kVec, kCached, kMart>(p, group, int64_t(blockIdx.x), shared);
}

// max_shared: shared memory that one block may have, in bytes. item_size: bytes of one logit.
inline RowPlan plan_pair_loss(const PairLossParams& p, int item_size, int64_t max_shared) {
  const int vec = 16 / item_size;
  RowPlan plan{};
  plan.vector = p.classes % vec == 0 && p.adv_stride % vec == 0 && p.clean_stride % vec == 0 &&
                aligned16(p.adv) && aligned16(p.clean) && aligned16(p.grad_adv) &&
                aligned16(p.grad_clean);
  const int64_t row_bytes = 2 * ceil_div(p.classes * item_size, 16) * 16;
  plan_rows(plan, p.batch, p.classes, row_bytes, max_shared);
  return plan;
}

void launch_pair_loss(const PairLossParams& p, Dtype dtype, float* total, Stream stream) {
  if (p.batch > 0) {
    for_dtype(dtype, [&](auto example) {
      using T = decltype(example);
      const RowPlan plan = plan_pair_loss(p, sizeof(T), max_dynamic_shared(sizeof(BlockScratch)));
      const Geometry geometry = geometry_of(plan);
      for_bools(p.mart, plan.vector, [&](auto mart, auto vector) {
        constexpr int kVec = vector.value ? 16 / sizeof(T) : 1;
        constexpr bool kMart = mart.value;
        if (plan.warp) return start<pair_loss_warp_kernel<T, kVec, kMart>>(geometry, stream, p);
        for_bool(plan.cached, [&](auto cached) {
          start<pair_loss_block_kernel<T, kVec, kMart, cached.value>>(geometry, stream, p);
        });
      });
    });
  }
  if (total) launch_sum_rows(p.loss_rows, p.batch, total, stream);
}

}  // namespace ard::cuda
