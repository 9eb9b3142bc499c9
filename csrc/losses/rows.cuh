// Kernels over rows of logits: a warp a row up to 1,024 classes, a block a row beyond. How they are
// launched, how the threads of a row share it, and its KL and cross-entropy by these threads.
#pragma once

#include "common/half.h"
#include "common/launch.h"
#include "common/reductions.cuh"
#include "common/vectors.cuh"
#include "losses/rows.h"

namespace ard::cuda {

// Of a kernel that has a warp for each row.
constexpr int kWarpsPerBlock = 4;

// Of a kernel over rows of logits.
struct RowPlan {
  bool warp;    // a warp a row, else a block a row
  bool vector;  // 16-byte loads
  bool cached;  // block only: the row stays in shared memory between its passes
  int threads;  // of a block
  int64_t blocks;
  int64_t shared_bytes;
};

constexpr int64_t kWarpRowClasses = 1024;

// Everything but `vector`. row_bytes: what a row keeps in shared memory, of max_shared that one
// block may have.
inline void plan_rows(RowPlan& plan, int64_t batch, int64_t classes, int64_t row_bytes,
                      int64_t max_shared) {
  if (classes <= kWarpRowClasses) {
    plan.warp = plan.cached = true;
    plan.threads = 32 * kWarpsPerBlock;
    plan.blocks = ceil_div(batch, kWarpsPerBlock);
    plan.shared_bytes = kWarpsPerBlock * row_bytes;
    return;
  }
  plan.threads = classes <= 8192 ? 256 : classes <= 32768 ? 512 : 1024;
  plan.blocks = batch;
  plan.cached = row_bytes <= max_shared;
  plan.shared_bytes = plan.cached ? row_bytes : 0;
}

inline Geometry geometry_of(const RowPlan& plan) {
  return {plan.blocks, plan.threads, plan.shared_bytes};
}

// Of all rows' losses; in kd.cu.
void launch_sum_rows(const float* rows, int64_t count, float* total, Stream stream);

// Visits the vectors of a row that belong to this thread. They are always the same ones, so what a
// thread staged it may read back without a barrier. `group` and `kVec` are those of the caller.
#define ARD_FOR_VECTORS(c, classes) \
  for (int64_t c = int64_t(group.rank()) * kVec; c < classes; c += int64_t(group.size()) * kVec)

template <int kVec, bool kCached, typename T>
__device__ __forceinline__ Vec<T, kVec> row_vec(const T* global, const T* staged, int64_t c) {
  return load_vec<kVec>(kCached ? staged + c : global + c);
}

// Returns the loss; writes grad_weight * (p - onehot) unless grad is null, and unless correct is
// null whether the label is the largest logit, the first of its size, of a row without NaN. Unless
// scale is null the gradient comes times a power of two, written there (see ce_scale_gradient).
//
// A label outside [0, C) cannot be reported from here: the row's loss and gradient become NaN.
template <typename T, int kVec, bool kCached, typename Group>
__device__ float ce_row_loss(const T* logits, int64_t classes, int64_t label, T* staged,
                             float grad_weight, T* grad, float* scale, bool* correct,
                             Group& group) {
  const bool valid = label >= 0 && label < classes;

  float max = -INFINITY;
  ARD_FOR_VECTORS(c, classes) {
    const Vec<T, kVec> z = load_vec<kVec>(logits + c);
    if constexpr (kCached) store_vec<kVec>(staged + c, z);
#pragma unroll
    for (int j = 0; j < kVec; ++j) max = max_or_second(to_float(z.v[j]), max);
  }
  max = group.reduce(max, MaxOp());
  const float label_logit = valid ? to_float(logits[label]) : max;

  float weight_sum = 0.0f, max_count = 0.0f, beaten = valid ? 0.0f : 1.0f;
  ARD_FOR_VECTORS(c, classes) {
    const Vec<T, kVec> z = row_vec<kVec, kCached>(logits, staged, c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float value = to_float(z.v[j]);
      weight_sum += ce_weight(max, value);
      max_count += value == max ? 1.0f : 0.0f;
      const bool below = value < label_logit || (value == label_logit && c + j >= label);
      if (!below) beaten = 1.0f;
    }
  }
  weight_sum = group.reduce(weight_sum, SumOp());
  max_count = group.reduce(max_count, SumOp());
  CeRow row = ce_row(max, weight_sum, max_count);
  if (!valid) row.rest = row.inv_sum = NAN;
  if (scale) {
    const float factor = ce_scale_gradient(row, label_logit);
    if (group.rank() == 0) *scale = factor;
  }

  if (grad) {
    ARD_FOR_VECTORS(c, classes) {
      const Vec<T, kVec> z = row_vec<kVec, kCached>(logits, staged, c);
      Vec<T, kVec> out;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        out.v[j] = from_float<T>(ce_grad(row, to_float(z.v[j]), c + j == label) * grad_weight);
      }
      store_vec<kVec>(grad + c, out);
    }
  }
  if (correct) {
    beaten = group.reduce(beaten, MaxOp());
    if (group.rank() == 0) *correct = beaten == 0.0f;
  }
  return ce_loss(row, label_logit);
}

// Elements of a row in shared memory, so that the next row is aligned as well.
template <typename T>
__device__ __forceinline__ int64_t padded_row(int64_t classes) {
  constexpr int64_t kAlign = 16 / int64_t(sizeof(T));
  return (classes + kAlign - 1) / kAlign * kAlign;
}

template <typename T>
struct KlRowLogits {
  const T* student;
  const T* teacher;
  T* staged_student;  // [classes] in shared memory, filled by kl_row when the row is cached
  T* staged_teacher;
  int64_t classes;
  bool teacher_is_staged;  // by an earlier kl_row
};

// What else a loss gathers on the passes over the row: nothing here.
struct KlOnly {
  __device__ __forceinline__ void loaded(int64_t, float) {}
  template <typename Group>
  __device__ __forceinline__ void all_loaded(Group&) {}
  __device__ __forceinline__ void weighed(float, float) {}
  template <typename Group>
  __device__ __forceinline__ void all_weighed(Group&) {}
};

// Returns the KL and leaves in `row` what the gradients are computed from. `also` is shown every
// student logit on the first pass and every student logit with its teacher weight on the second.
template <int kVec, bool kCached, typename T, typename Group, typename Also>
__device__ __forceinline__ float kl_row(const KlRowLogits<T>& z, float inv_temperature,
                                        float inv_teacher_temperature, Group& group, KdRow& row,
                                        Also& also) {
  Largest top{-INFINITY, 0};
  ARD_FOR_VECTORS(c, z.classes) {
    const Vec<T, kVec> s = load_vec<kVec>(z.student + c);
    const Vec<T, kVec> t = z.teacher_is_staged
                               ? row_vec<kVec, kCached>(z.teacher, z.staged_teacher, c)
                               : load_vec<kVec>(z.teacher + c);
    if constexpr (kCached) {
      store_vec<kVec>(z.staged_student + c, s);
      if (!z.teacher_is_staged) store_vec<kVec>(z.staged_teacher + c, t);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      top = larger(top, Largest{to_float(t.v[j]), int(c) + j});
      also.loaded(c + j, to_float(s.v[j]));
    }
  }
  top = group.largest(top);
  also.all_loaded(group);
  row = kd_row_begin(to_float(z.student[top.index]), top.value, inv_temperature,
                     inv_teacher_temperature);

  KdSums sums{0.0f, 0.0f, -INFINITY, INFINITY};
  ARD_FOR_VECTORS(c, z.classes) {
    const Vec<T, kVec> s = row_vec<kVec, kCached>(z.student, z.staged_student, c);
    const Vec<T, kVec> t = row_vec<kVec, kCached>(z.teacher, z.staged_teacher, c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      float gap;
      const KdWeighed e = kd_weigh(row, to_float(s.v[j]), to_float(t.v[j]), gap);
      sums.weight += e.weight;
      sums.weighted_gap += e.weight * e.gap;
      sums.max_gap = max_or_second(gap, sums.max_gap);
      sums.min_gap = min_or_second(gap, sums.min_gap);
      also.weighed(to_float(s.v[j]), e.weight);
    }
  }
  sums.weight = group.reduce(sums.weight, SumOp());
  sums.weighted_gap = group.reduce(sums.weighted_gap, SumOp());
  sums.max_gap = group.reduce(sums.max_gap, MaxOp());
  sums.min_gap = group.reduce(sums.min_gap, MinOp());
  also.all_weighed(group);

  // From here on the range of the row, the same for all its threads, decides.
  if (!kd_row_set_sums(row, sums)) {
    float student_max = -INFINITY;
    ARD_FOR_VECTORS(c, z.classes) {
      const Vec<T, kVec> s = row_vec<kVec, kCached>(z.student, z.staged_student, c);
#pragma unroll
      for (int j = 0; j < kVec; ++j) student_max = max_or_second(to_float(s.v[j]), student_max);
    }
    kd_row_set_range(row, group.reduce(student_max, MaxOp()));
  }

  float sum = 0.0f;
  ARD_FOR_VECTORS(c, z.classes) {
    const Vec<T, kVec> s = row_vec<kVec, kCached>(z.student, z.staged_student, c);
    const Vec<T, kVec> t = row_vec<kVec, kCached>(z.teacher, z.staged_teacher, c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if (row.range == KdRange::far) {
        sum += kd_far_weight(row, to_float(s.v[j]));
      } else {
        sum += kd_term(row, to_float(s.v[j]), to_float(t.v[j])).term;
      }
    }
  }
  return kd_row_finish(row, group.reduce(sum, SumOp()));
}

}  // namespace ard::cuda
