// The KL of one row by the threads of a group, and how they find each class again for its
// gradients.
#pragma once

#include "core/half.h"
#include "core/kd_math.h"
#include "cuda/reduce.cuh"
#include "cuda/row_loop.cuh"

namespace ard::cuda {

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
