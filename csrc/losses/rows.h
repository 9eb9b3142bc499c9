// One row of the distillation loss KL(teacher^T || student^T) and of cross-entropy, element by
// element.
//
// Student and teacher may have temperatures of their own; in that case the gaps below are
// differences of two rounded numbers, and a student very close to its teacher keeps fewer digits of
// its KL.
//
// The textbook form sum q * (log q - log p) loses everything at high temperature, where p and q
// differ by 1e-3 of 1/C. With u and v the scaled logits, d = u - v and m = sum q * d,
//
//   KL = log sum q e^d - sum q d = log1p(sum q * phi(d - m)),   phi(x) = e^x - 1 - x >= 0,
//
// a sum of non-negative terms: nothing cancels, and an error in m enters only to second order. The
// gradient p - q = (q * (e^x - 1) - q * excess) / (1 + excess), excess being that sum, follows from
// the same terms. Rows in which some class is far more likely under the student use the log-sum-exp
// form instead, which is accurate there because the KL is large.
//
// Special values: a NaN, a logit of +inf and a row of -inf only make the sums of their row NaN, and
// so its loss and all its gradients; a logit of -inf is a class of probability 0. Finite logits
// never give NaN: a difference that float cannot hold counts as infinite, and where one or their
// sum decides the mean gap m, the KL is +inf.
#pragma once

#include "common/math.h"

namespace ard {

// How a row is finished. `near`: every class has |x| < 1, so that a polynomial does for e^x - 1
// (all rows of ARD's T = 30, as a rule). `far`: the log-sum-exp form.
enum class KdRange { near, middle, far };

// What the passes over one row have found so far.
struct KdRow {
  float student_ref,
      teacher_ref;           // logits at the teacher's largest class, subtracted before scaling:
                             // exact for close logits, so a constant shift costs no accuracy
  float shift, shift_error;  // student_ref - teacher_ref and what its rounding lost
  float inv_temperature;
  float inv_teacher_temperature;
  float inv_z;            // 1 / sum of teacher weights
  float log_z;            // its logarithm
  float mean_gap;         // m
  float student_max;      // largest student logit; unused in a near row
  union {                 // one register
    float excess;         // sum q * phi(d - m); not of a far row
    float inv_student_z;  // 1 / sum of student weights, of a far row
  };
  KdRange range;

  ARD_HD bool tempered() const { return inv_teacher_temperature != inv_temperature; }
};

struct KdWeighed {
  float a;       // scaled student logit
  float gap;     // d, 0 for a class the teacher excludes (0 * log 0 = 0)
  float weight;  // e^v up to the row's normaliser, 0 for a class the teacher excludes
};

// Sums and extremes of a row, over all its classes.
struct KdSums {
  float weight, weighted_gap;
  float max_gap, min_gap;
};

struct KdTerm {
  float q;     // teacher probability
  float diff;  // q * (e^x - 1)
  float term;  // q * phi(x)
};

// NaN, and with it the row, for a temperature that is not positive.
ARD_HD float kd_inv_temperature(const float* per_row, int64_t index, float inv_of_all) {
  if (!per_row) return inv_of_all;
  return per_row[index] > 0.0f ? 1.0f / per_row[index] : NAN;
}

ARD_HD KdRow kd_row_begin(float student_at_max, float teacher_max, float inv_temperature,
                          float inv_teacher_temperature) {
  KdRow row;
  // A student that excludes the teacher's largest class has no usable reference there.
  row.student_ref = student_at_max == -INFINITY ? 0.0f : student_at_max;
  row.teacher_ref = teacher_max;
  row.shift = row.student_ref - row.teacher_ref;
  row.shift_error = sub_error(row.student_ref, row.teacher_ref, row.shift);
  row.inv_temperature = inv_temperature;
  row.inv_teacher_temperature = inv_teacher_temperature;
  row.inv_z = row.log_z = row.mean_gap = row.student_max = row.excess = 0.0f;
  row.range = KdRange::near;
  return row;
}

ARD_HD float kd_scaled(const KdRow& row, float student) {
  return (student - row.student_ref) * row.inv_temperature;
}

// tempered: the teacher has another temperature than the student. The scaled gap is returned apart
// for the extremes: there an excluded class must count.
ARD_HD KdWeighed kd_weigh(const KdRow& row, bool tempered, float student, float teacher,
                          float& gap) {
  const float a = kd_scaled(row, student);
  const float v = (teacher - row.teacher_ref) * row.inv_teacher_temperature;
  const float difference = student - teacher;
  // What the differences lost in rounding decides the gap of a student that has nearly become its
  // teacher. There is no such rest where one of them is infinite, be it that it overflows.
  const float rest = sub_error(student, teacher, difference) - row.shift_error;
  const float shifted = difference - row.shift;
  const float apart = (student - row.student_ref) - (teacher - row.teacher_ref);
  gap = tempered ? a - v : (rest == rest ? shifted + rest : apart) * row.inv_temperature;
  const float weight = exp_f32(v);
  const float excluded = student != student ? student : 0.0f;  // NaN must not pass unseen
  return KdWeighed{a, weight == 0.0f ? excluded : gap, weight};
}

ARD_HD KdWeighed kd_weigh(const KdRow& row, float student, float teacher, float& gap) {
  return kd_weigh(row, row.tempered(), student, teacher, gap);
}

// True when the row is near and needs no kd_row_set_range.
ARD_HD bool kd_row_set_sums(KdRow& row, const KdSums& sums) {
  row.inv_z = 1.0f / sums.weight;
  row.log_z = log_f32(sums.weight);
  row.mean_gap = sums.weighted_gap * row.inv_z;
  return sums.max_gap - row.mean_gap < 1.0f && row.mean_gap - sums.min_gap < 1.0f;
}

ARD_HD void kd_row_set_range(KdRow& row, float student_max) {
  row.student_max = student_max;
  if (!is_finite(student_max)) row.mean_gap = NAN;  // for the teacher's gradient
  // The largest log(q e^x) of the row; beyond e^10 the KL itself is of that size. NaN and infinite
  // gaps count as far.
  const float largest = kd_scaled(row, student_max) - row.log_z - row.mean_gap;
  const bool far = !(largest <= 10.0f) || !is_finite(row.mean_gap);
  row.range = far ? KdRange::far : KdRange::middle;
}

// phi(x) = e^x - 1 - x on |x| <= 1: minimax fit of phi(x) / x^2, relative error 9e-8.
ARD_HD float kd_near_phi(float x) {
  float p = 2.4960813e-5f;
  p = p * x + 2.0325484e-4f;
  p = p * x + 1.3891335e-3f;
  p = p * x + 8.3309305e-3f;
  p = p * x + 4.1666516e-2f;
  p = p * x + 1.6666696e-1f;
  p = p * x + 0.5f;
  return x * x * p;
}

ARD_HD KdTerm kd_near_term(const KdRow& row, float gap, float weight) {
  const float q = weight * row.inv_z;
  const float x = gap - row.mean_gap;
  const float phi = kd_near_phi(x);
  return KdTerm{q, q * (x + phi), q * phi};
}

ARD_HD KdTerm kd_middle_term(const KdRow& row, const KdWeighed& e) {
  const KdTerm near = kd_near_term(row, e.gap, e.weight);
  const float x = e.gap - row.mean_gap;
  const bool small = (x < 1.0f) & (x > -1.0f) & (e.weight != 0.0f);
  const float diff = exp_f32(e.a - (row.log_z + row.mean_gap)) - near.q;
  return KdTerm{near.q, small ? near.diff : diff, small ? near.term : diff - near.q * x};
}

// The term of a close row straight from its logits.
ARD_HD KdTerm kd_term(const KdRow& row, float student, float teacher) {
  float gap;
  const KdWeighed e = kd_weigh(row, student, teacher, gap);
  return row.range == KdRange::near ? kd_near_term(row, e.gap, e.weight) : kd_middle_term(row, e);
}

// Of the difference, scaled: a product that is subtracted from another may be fused with that, and
// then the largest class of huge logits does not have the weight 1.
ARD_HD float kd_far_weight(const KdRow& row, float student) {
  return exp_f32((student - row.student_max) * row.inv_temperature);
}

// The KL of the row, from the sum of its terms or, in a far row, of kd_far_weight.
ARD_HD float kd_row_finish(KdRow& row, float sum) {
  if (row.range == KdRange::far) {
    row.inv_student_z = 1.0f / sum;
    if (!is_finite(row.mean_gap)) return INFINITY + (log_f32(sum) - row.log_z);
    return (kd_scaled(row, row.student_max) + log_f32(sum)) - row.log_z - row.mean_gap;
  }
  row.excess = sum;
  return log1p_f32(sum);
}

// p_student - p_teacher of one class, up to the factor 1 / (1 + excess) of the row.
ARD_HD float kd_close_grad(const KdRow& row, float q, float diff) { return diff - q * row.excess; }

ARD_HD float kd_far_grad(const KdRow& row, float student, float weight) {
  return kd_far_weight(row, student) * row.inv_student_z - weight * row.inv_z;
}

// p_student - p_teacher of one class straight from its logits, whatever the row's range.
// close_factor: 1 / (1 + excess).
ARD_HD float kd_student_grad(const KdRow& row, float student, float teacher, float close_factor) {
  if (row.range == KdRange::far) {
    float gap;
    const KdWeighed e = kd_weigh(row, student, teacher, gap);
    return kd_far_grad(row, student, e.weight);
  }
  const KdTerm e = kd_term(row, student, teacher);
  return kd_close_grad(row, e.q, e.diff) * close_factor;
}

// From here on kd_student_grad gives its gradients times a power of two.
ARD_HD void kd_scale_gradient(KdRow& row, float& close_factor, float factor) {
  close_factor *= factor;
  if (row.range == KdRange::far) {
    row.inv_student_z *= factor;
    row.inv_z *= factor;
  }
}

// The KL's derivative to the teacher's scaled logit, -q (d - m): how much more than the mean it
// costs to favour this class. To its logit: that over the teacher's temperature.
ARD_HD float kd_teacher_grad(const KdRow& row, float gap, float weight) {
  return -(weight * row.inv_z) * (gap - row.mean_gap);
}

// A row's loss of two terms, in double: the product of two weights may be beyond float where that
// with the loss is not. A weight of 0 does not hide an infinite term.
ARD_HD float weighted_loss(float weight, float first_weight, float first, float second_weight,
                           float second) {
  return float(weight * (double(first_weight) * first + double(second_weight) * second));
}

// Cross-entropy, relative to the largest logit z_max: with r the sum of e^(z - z_max) over all
// classes but one that attains z_max, CE = log1p(r) + (z_max - z_label), accurate when the label is
// certain.
struct CeRow {
  float max;
  float rest;     // r
  float inv_sum;  // 1 / (1 + r)
};

ARD_HD CeRow ce_row(float max, float weight_sum, float max_count) {
  const float rest = weight_sum + (max_count - 1.0f);
  return CeRow{max, rest, 1.0f / (1.0f + rest)};
}

ARD_HD float ce_loss(const CeRow& row, float label_logit) {
  return log1p_f32(row.rest) + (row.max - label_logit);
}

// p - onehot of one class.
ARD_HD float ce_grad(const CeRow& row, float logit, bool is_label) {
  const float p = exp_f32(logit - row.max) * row.inv_sum;
  // p - 1 would cancel for a certain label.
  return is_label ? (logit == row.max ? -row.rest * row.inv_sum : p - 1.0f) : p;
}

// What the cross-entropy of a row of weights e^(z - z_max) sums: `rest` and the count of the
// largest, kept apart so that a certain label loses no digits.
ARD_HD float ce_rest_of_weight(float weight) { return weight == 1.0f ? 0.0f : weight; }
ARD_HD float ce_count_of_weight(float weight) { return weight == 1.0f ? 1.0f : 0.0f; }

// p - onehot of one class from its weight.
ARD_HD float ce_grad_of_weight(const CeRow& row, float weight, bool is_label) {
  const float p = weight * row.inv_sum;
  const float at_label = weight == 1.0f ? -row.rest * row.inv_sum : p - 1.0f;
  return is_label ? at_label : p;
}

}  // namespace ard
