// The KL of one row of logits by the threads of a group.
//
// A row is read from memory once and stays in shared memory as two floats a class. Most rows are
// quick: their gaps are finite and moderate, and a few short loops without branches do. NaN,
// infinite logits, excluded classes, huge gaps and rows too long for shared memory make a row slow:
// it is read again, class by class and as rows.h has it.
#pragma once

#include "losses/rows.cuh"

namespace ard::cuda {

constexpr float kLog2E = 1.44269504f;

// The largest |x| of a quick row: its gaps are known to 4e-6, and e^40 times a weight is far from
// the limits of float.
constexpr float kQuickReach = 40.0f;

// 2^x to 2 ulp, 0 below -126.
__device__ __forceinline__ float exp2_fast(float x) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

template <typename T>
struct KlLogits {
  const T* student;  // [C]
  const T* teacher;  // [C]
  float inv_temperature, inv_teacher_temperature;
  float* first;  // arrays in shared memory for the group's share of the row; not of a slow row
  float* second;
};

// As KdRow, of a quick row.
struct KlRow {
  float teacher_ref;
  float student_max = 0.0f;  // where it is asked for
  float inv_temperature;
  float ratio;         // of the student's to the teacher's temperature
  float shift;         // student_ref - ratio * teacher_ref
  float weight_scale;  // log2(e) / teacher's temperature
  float inv_z;         // 1 / sum of teacher weights
  float mean;          // m, scaled
  float excess;        // sum q * phi(d - m)
  bool near;           // as KdRange::near
};

// A thread's vectors of the group's share, from 0 on. `group` and `kVec` are those of the caller.
#define ARD_FOR_SHARE(n)                                                                \
  for (int n = group.rank() * kVec, n##_end = group.end() - group.begin(); n < n##_end; \
       n += group.size() * kVec)

// The teacher's largest class, the first of its size, and the student's logit there.
struct KlTop {
  float teacher, student;
  int index;
};

struct KlTopOp {
  __device__ __forceinline__ KlTop operator()(const KlTop& a, const KlTop& b) const {
    const bool second = b.teacher > a.teacher || (b.teacher == a.teacher && b.index < a.index);
    return second ? b : a;
  }
};

// More: what a loss sums of the teacher's weights, and whatever else. It has weight(), the sum of
// all weights, plus(other), and kStudentMax: whether it needs the largest student logit.
template <typename More>
struct KlSums : More {
  float gap = 0.0f, largest_gap = 0.0f;
};

struct KlSumsOp {
  template <typename More>
  __device__ __forceinline__ KlSums<More> operator()(const KlSums<More>& a,
                                                     const KlSums<More>& b) const {
    KlSums<More> out;
    static_cast<More&>(out) = a.plus(b);
    out.gap = a.gap + b.gap;
    out.largest_gap = fmaxf(a.largest_gap, b.largest_gap);
    return out;
  }
};

struct PlusOp {
  template <typename More>
  __device__ __forceinline__ More operator()(const More& a, const More& b) const {
    return a.plus(b);
  }
};

// The gap, before it is divided by the temperature and the mean is known. v: of the weight.
__device__ __forceinline__ float kl_gap(const KlRow& row, float student, float teacher, float& v) {
  const float below = teacher - row.teacher_ref;
  v = below * row.weight_scale;
  // With what the difference lost in rounding (Knuth's two-sum), which decides the gap where
  // student and teacher are a constant apart.
  const float difference = fmaf(-row.ratio, teacher, student);
  const float seen = add_rn(student, -difference);
  const float lost = add_rn(student, -add_rn(difference, seen));
  return (difference - row.shift) + (lost + fmaf(-row.ratio, teacher, seen));
}

// The first two passes: each class's gap goes to z.first, its v to z.second. False for a slow row.
// add(more, largest student logit, class, student logit, teacher weight) for every class.
template <int kVec, typename T, typename Group, typename More, typename Add>
__device__ __forceinline__ bool kl_row(const KlLogits<T>& z, Group& group, KlRow& row, More& more,
                                       const Add& add) {
  const T* const student_row = z.student + group.begin();
  const T* const teacher_row = z.teacher + group.begin();
  // Of the vector with the thread's largest: its class is looked for once it is known.
  float largest = -INFINITY, student_max = -INFINITY;
  int at = -1;
#pragma unroll(kVec == 8 ? 1 : 2)  // ptxas spills two vectors of eight
  ARD_FOR_SHARE(n) {
    const Floats<kVec> student = to_floats(load_vec<kVec>(student_row + n));
    const Floats<kVec> teacher = to_floats(load_vec<kVec>(teacher_row + n));
    const float of_vector = largest_of(teacher);
    if constexpr (More::kStudentMax) student_max = fmaxf(largest_of(student), student_max);
    if (of_vector > largest) {
      largest = of_vector;
      at = n;
    }
    stage<kVec>(z.first, n, student);
    stage<kVec>(z.second, n, teacher);
  }
  KlTop top{-INFINITY, -INFINITY, 0x7fffffff};
  if (at >= 0) {
    const Floats<kVec> student = staged<kVec>(z.first, at), teacher = staged<kVec>(z.second, at);
#pragma unroll
    for (int j = kVec - 1; j >= 0; --j) {
      if (teacher[j] == largest) top = KlTop{largest, student[j], group.begin() + at + j};
    }
  }
  top = group.reduce(top, KlTopOp());
  if constexpr (More::kStudentMax) row.student_max = group.reduce(student_max, MaxOp());
  row.teacher_ref = top.teacher;
  row.inv_temperature = z.inv_temperature;
  row.ratio = z.inv_teacher_temperature / z.inv_temperature;
  row.shift = fmaf(-row.ratio, top.teacher, top.student);
  row.weight_scale = z.inv_teacher_temperature * kLog2E;

  KlSums<More> sums;
#pragma unroll 1
  ARD_FOR_SHARE(n) {
    const Floats<kVec> student = staged<kVec>(z.first, n), teacher = staged<kVec>(z.second, n);
    Floats<kVec> gap, v;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      gap[j] = kl_gap(row, student[j], teacher[j], v[j]);
      const float weight = exp2_fast(v[j]);
      sums.gap += weight * gap[j];
      sums.largest_gap = fmaxf(fabsf(gap[j]), sums.largest_gap);
      add(sums, row.student_max, group.begin() + n + j, student[j], weight);
    }
    stage<kVec>(z.first, n, gap);
    stage<kVec>(z.second, n, v);
  }
  sums = group.reduce(sums, KlSumsOp());
  more = sums;
  row.inv_z = 1.0f / sums.weight();
  row.mean = sums.gap * row.inv_z * z.inv_temperature;
  // At least every |x|. A NaN, or an infinity, makes the mean NaN.
  const float reach = sums.largest_gap * z.inv_temperature + fabsf(row.mean);
  row.near = reach < 1.0f;
  return reach < kQuickReach;
}

// Of one class; all but x are times the sum of the teacher's weights.
struct KlTerm {
  float weight, x;
  float student;  // weight * e^x
  float diff;     // weight * (e^x - 1)
  float term;     // weight * phi(x)
};

template <bool kNear>
__device__ __forceinline__ KlTerm kl_term(const KlRow& row, float gap, float v) {
  KlTerm e;
  e.weight = exp2_fast(v);
  e.x = fmaf(gap, row.inv_temperature, -row.mean);
  const float phi = kd_near_phi(e.x);
  e.term = e.weight * phi;
  e.diff = e.weight * (e.x + phi);
  if constexpr (kNear) {
    e.student = e.weight + e.diff;
  } else {
    const bool small = fabsf(e.x) < 1.0f;
    e.student = exp2_fast(fmaf(e.x, kLog2E, v));
    const float diff = e.student - e.weight;
    e.diff = small ? e.diff : diff;
    e.term = small ? e.term : fmaf(-e.weight, e.x, diff);
  }
  return e;
}

// Goes once more over a quick row: visit(n, terms of the vector n), which may overwrite what is
// kept of it. Returns the thread's sum of `term`.
template <int kVec, bool kNear, typename T, typename Group, typename Visit>
__device__ __forceinline__ float for_kl_terms(const KlLogits<T>& z, const KlRow& row, Group& group,
                                              const Visit& visit) {
  float sum = 0.0f;
#pragma unroll 1
  ARD_FOR_SHARE(n) {
    const Floats<kVec> gap = staged<kVec>(z.first, n), v = staged<kVec>(z.second, n);
    KlTerm terms[kVec];
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      terms[j] = kl_term<kNear>(row, gap[j], v[j]);
      sum += terms[j].term;
    }
    visit(n, terms);
  }
  return sum;
}

template <int kVec, typename T, typename Group, typename Visit>
__device__ __forceinline__ float for_kl_terms(const KlLogits<T>& z, const KlRow& row, Group& group,
                                              const Visit& visit) {
  return row.near ? for_kl_terms<kVec, true>(z, row, group, visit)
                  : for_kl_terms<kVec, false>(z, row, group, visit);
}

// Sets row.excess and returns the KL, from the threads' sums.
template <typename Group>
__device__ __forceinline__ float kl_of_sum(KlRow& row, float sum, Group& group) {
  row.excess = group.reduce(sum, SumOp()) * row.inv_z;
  return log1p_f32(row.excess);
}

// A slow row's KL. Leaves in `row` what rows.h computes the gradients from; more and add as of
// kl_row.
template <typename T, typename Group, typename More, typename Add>
__device__ __forceinline__ float slow_kl_row(const KlLogits<T>& z, Group& group, KdRow& row,
                                             More& more, const Add& add) {
  constexpr int kVec = 1;
  Largest top{-INFINITY, 0};
  float student_max = -INFINITY;
#pragma unroll 1
  ARD_FOR_VECTORS(c) {
    top = larger(top, Largest{to_float(z.teacher[c]), c});
    student_max = fmaxf(to_float(z.student[c]), student_max);
  }
  top = group.reduce(top, LargerOp());
  student_max = group.reduce(student_max, MaxOp());
  row = kd_row_begin(to_float(z.student[top.index]), top.value, z.inv_temperature,
                     z.inv_teacher_temperature);

  more = More();
  KdSums sums{0.0f, 0.0f, -INFINITY, INFINITY};
#pragma unroll 1
  ARD_FOR_VECTORS(c) {
    const float student = to_float(z.student[c]);
    float gap;
    const KdWeighed e = kd_weigh(row, student, to_float(z.teacher[c]), gap);
    sums.weighted_gap += e.weight * e.gap;
    sums.max_gap = max_or_second(gap, sums.max_gap);
    sums.min_gap = min_or_second(gap, sums.min_gap);
    add(more, student_max, c, student, e.weight);
  }
  more = group.reduce(more, PlusOp());
  sums.weight = more.weight();
  sums.weighted_gap = group.reduce(sums.weighted_gap, SumOp());
  sums.max_gap = group.reduce(sums.max_gap, MaxOp());
  sums.min_gap = group.reduce(sums.min_gap, MinOp());
  if (!kd_row_set_sums(row, sums)) kd_row_set_range(row, student_max);

  float sum = 0.0f;
#pragma unroll 1
  ARD_FOR_VECTORS(c) {
    const float student = to_float(z.student[c]);
    sum += row.range == KdRange::far ? kd_far_weight(row, student)
                                     : kd_term(row, student, to_float(z.teacher[c])).term;
  }
  return kd_row_finish(row, group.reduce(sum, SumOp()));
}

}  // namespace ard::cuda
