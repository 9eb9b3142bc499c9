// One row of logits on the CPU, its KL and its cross-entropy: vector loops only; the mathematics is
// in rows.h.
#pragma once

#include <memory>

#include "common/half.h"
#include "common/simd.h"
#include "losses/rows.h"

namespace ard::cpu {

// Sums are kept in kLanes floats over at most this many elements, then in double: the rounding
// error of a row does not grow with the number of classes.
constexpr int64_t kSumBlock = 1024;

ARD_HD float lane_max(const float* lanes) {
  float max = lanes[0];
  for (int l = 1; l < kLanes; ++l) max = max_or_second(lanes[l], max);
  return max;
}

ARD_HD float lane_min(const float* lanes) {
  float min = lanes[0];
  for (int l = 1; l < kLanes; ++l) min = min_or_second(lanes[l], min);
  return min;
}

// The logits of one row as whole vectors of floats. A float row is read where it lies, but for its
// last partial vector; other dtypes are converted first. Padding is -inf, a class that neither
// network allows: it adds nothing to any sum.
struct RowView {
  const float* data;  // [classes] at least
  const float* tail;  // the vectors from `whole` on
  int64_t whole;      // classes that lie in whole vectors of `data`
  int64_t padded;     // classes, rounded up to whole vectors

  ARD_HD const float* vector_at(int64_t c) const { return c < whole ? data + c : tail; }
};

ARD_HD void load_tail(const float* row, int64_t classes, int64_t from, float* out) {
  for (int64_t c = from; c < from + kLanes; ++c) out[c - from] = c < classes ? row[c] : -INFINITY;
}

ARD_HD RowView view_row(const float* row, int64_t classes, int64_t padded, float*, float* tail) {
  const int64_t whole = classes / kLanes * kLanes;
  if (whole < classes) load_tail(row, classes, whole, tail);
  return RowView{row, tail, whole, padded};
}

template <typename T>
ARD_HD RowView view_row(const T* row, int64_t classes, int64_t padded, float* converted, float*) {
  for (int64_t c = 0; c < classes; ++c) converted[c] = to_float(row[c]);
  for (int64_t c = classes; c < padded; ++c) converted[c] = -INFINITY;
  return RowView{converted, nullptr, padded, padded};
}

// The largest logit of the row; NaN is passed over.
ARD_HD float vector_max(const RowView& row) {
  float tops[kLanes];
  for (int l = 0; l < kLanes; ++l) tops[l] = -INFINITY;
  for (int64_t c = 0; c < row.padded; c += kLanes) {
    const float* v = row.vector_at(c);
    ARD_LANES for (int l = 0; l < kLanes; ++l) tops[l] = max_or_second(v[l], tops[l]);
  }
  return lane_max(tops);
}

// What the loss and the gradient of one row are computed from.
ARD_HD CeRow ce_row_of(const RowView& logits) {
  const float max = vector_max(logits);
  double weight_sum = 0.0, max_count = 0.0;
  for (int64_t block = 0; block < logits.padded; block += kSumBlock) {
    const int64_t stop = block + kSumBlock < logits.padded ? block + kSumBlock : logits.padded;
    float weights[kLanes] = {}, counts[kLanes] = {};
    for (int64_t c = block; c < stop; c += kLanes) {
      const float* v = logits.vector_at(c);
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        weights[l] += ce_weight(max, v[l]);
        counts[l] += v[l] == max ? 1.0f : 0.0f;
      }
    }
    weight_sum += lane_sum(weights);
    max_count += lane_sum(counts);
  }
  return ce_row(max, float(weight_sum), float(max_count));
}

// grad = weight * (p - onehot).
template <typename T>
ARD_HD void ce_row_grad(const RowView& logits, const CeRow& row, int64_t label, int64_t classes,
                        float weight, T* __restrict grad) {
  const float* __restrict z = logits.data;
  for (int64_t c = 0; c < classes; ++c) {
    grad[c] = from_float<T>(ce_grad(row, z[c], false) * weight);
  }
  grad[label] = from_float<T>(ce_grad(row, logits.data[label], true) * weight);
}

// What a thread keeps between the passes over a row: converted logits (s, t), gaps (over t),
// weights, and `more` rows of the caller's.
struct KlScratch {
  explicit KlScratch(int64_t classes, int more = 0)
      : padded((classes + kLanes - 1) / kLanes * kLanes),
        data(new float[(3 + more) * padded]),
        s(data.get()),
        t(s + padded),
        w(t + padded) {}
  ARD_HD float* extra(int index) const { return w + (1 + index) * padded; }

  const int64_t padded;
  const std::unique_ptr<float[]> data;
  float* const s;
  float* const t;
  float* const w;
};

// Gaps and weights of all classes, and the row's sums of them.
template <bool kTempered>
ARD_HD KdSums kl_row_weigh(const KdRow& row, const RowView& student, const RowView& teacher,
                           float* gap, float* w) {
  double weight_sum = 0.0, weighted_gap_sum = 0.0;
  float max_gap[kLanes], min_gap[kLanes];
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    max_gap[l] = -INFINITY;
    min_gap[l] = INFINITY;
  }
  for (int64_t block = 0; block < student.padded; block += kSumBlock) {
    const int64_t stop = block + kSumBlock < student.padded ? block + kSumBlock : student.padded;
    float weights[kLanes] = {}, gaps[kLanes] = {};
    for (int64_t c = block; c < stop; c += kLanes) {
      const float* sv = student.vector_at(c);
      const float* tv = teacher.vector_at(c);
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        float extreme;
        const KdWeighed e = kd_weigh(row, kTempered, sv[l], tv[l], extreme);
        weights[l] += e.weight;
        gaps[l] += e.weight * e.gap;
        max_gap[l] = max_or_second(extreme, max_gap[l]);
        min_gap[l] = min_or_second(extreme, min_gap[l]);
        gap[c + l] = e.gap;
        w[c + l] = e.weight;
      }
    }
    weight_sum += lane_sum(weights);
    weighted_gap_sum += lane_sum(gaps);
  }
  return KdSums{float(weight_sum), float(weighted_gap_sum), lane_max(max_gap), lane_min(min_gap)};
}

// Writes the gradient value(c, logit) of each class; unless scale is null times a power of two,
// written there, that brings the largest into [1, 2). value takes padding, too.
template <typename T, typename Value>
ARD_HD void write_gradient(const RowView& logits, int64_t classes, float kl, float* scale,
                           T* __restrict grad, const Value& value) {
  float factor = 1.0f;
  if (scale) {
    float tops[kLanes] = {};
    for (int64_t c = 0; c < logits.padded; c += kLanes) {
      const float* v = logits.vector_at(c);
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        tops[l] = max_or_second(magnitude(value(c + l, v[l])), tops[l]);
      }
    }
    if (kl == kl) factor = power_of_two_to_one(lane_max(tops));
    *scale = factor;
  }
  const float* z = logits.data;
  for (int64_t c = 0; c < classes; ++c) grad[c] = from_float<T>(value(c, z[c]) * factor);
}

// The KL of one row; writes grad_weight * (p_student - p_teacher) unless grad is null, scaled as by
// write_gradient. weighed(row, gap, w) is called once the classes have their gaps and weights,
// which are overwritten later on.
template <typename T, typename Weighed>
ARD_HD float kl_row(const RowView& student, const RowView& teacher, const KlScratch& b,
                    float inv_temperature, float inv_teacher_temperature, int64_t classes,
                    float grad_weight, T* __restrict grad, float* scale, const Weighed& weighed) {
  // May hold the converted logits themselves: read and written at the same index.
  float* gap = b.t;
  float* w = b.w;
  float* diff = gap;  // takes its place, element by element
  const float top = vector_max(teacher);
  // The first vector that holds it: a search that vectorises, unlike one for the position itself.
  float at_top = student.vector_at(0)[0];
  for (int64_t c = 0; c < b.padded; c += kLanes) {
    const float* tv = teacher.vector_at(c);
    int found = 0;
    ARD_LANES for (int l = 0; l < kLanes; ++l) found |= tv[l] == top;
    if (!found) continue;
    int l = 0;
    while (tv[l] != top) ++l;
    at_top = student.vector_at(c)[l];
    break;
  }
  KdRow row = kd_row_begin(at_top, top, inv_temperature, inv_teacher_temperature);
  const KdSums sums = row.tempered() ? kl_row_weigh<true>(row, student, teacher, gap, w)
                                     : kl_row_weigh<false>(row, student, teacher, gap, w);
  if (!kd_row_set_sums(row, sums)) kd_row_set_range(row, vector_max(student));
  weighed(row, gap, w);

  double sum = 0.0;
  for (int64_t block = 0; block < b.padded; block += kSumBlock) {
    const int64_t stop = block + kSumBlock < b.padded ? block + kSumBlock : b.padded;
    float sums[kLanes] = {};
    if (row.range == KdRange::near) {
      for (int64_t c = block; c < stop; c += kLanes) {
        ARD_LANES for (int l = 0; l < kLanes; ++l) {
          const float x = gap[c + l] - row.mean_gap;
          const float phi = kd_near_phi(x);
          sums[l] += w[c + l] * phi;
          diff[c + l] = x + phi;  // up to the weight
        }
      }
    } else if (row.range == KdRange::middle) {
      for (int64_t c = block; c < stop; c += kLanes) {
        const float* sv = student.vector_at(c);
        ARD_LANES for (int l = 0; l < kLanes; ++l) {
          const float a = kd_scaled(row, sv[l]);
          const KdTerm e = kd_middle_term(row, KdWeighed{a, gap[c + l], w[c + l]});
          sums[l] += e.term;
          diff[c + l] = e.diff;
          w[c + l] = e.q;
        }
      }
    } else {
      for (int64_t c = block; c < stop; c += kLanes) {
        const float* sv = student.vector_at(c);
        ARD_LANES for (int l = 0; l < kLanes; ++l) { sums[l] += kd_far_weight(row, sv[l]); }
      }
    }
    sum += lane_sum(sums);
  }

  if (row.range == KdRange::near) sum *= row.inv_z;
  const float kl = kd_row_finish(row, float(sum));
  if (!grad) return kl;
  if (row.range == KdRange::near) {
    const float weight = grad_weight * row.inv_z / (1.0f + row.excess);
    write_gradient(student, classes, kl, scale, grad,
                   [&](int64_t c, float) __attribute__((always_inline)) {
                     return w[c] * (diff[c] - row.excess) * weight;
                   });
  } else if (row.range == KdRange::middle) {
    const float weight = grad_weight / (1.0f + row.excess);
    write_gradient(student, classes, kl, scale, grad,
                   [&](int64_t c, float) __attribute__((always_inline)) {
                     return kd_close_grad(row, w[c], diff[c]) * weight;
                   });
  } else {
    write_gradient(student, classes, kl, scale, grad,
                   [&](int64_t c, float logit) __attribute__((always_inline)) {
                     return kd_far_grad(row, logit, w[c]) * grad_weight;
                   });
  }
  return kl;
}

template <typename T>
ARD_HD T* row_or_null(void* data, int64_t row, int64_t classes) {
  return data ? static_cast<T*>(data) + row * classes : nullptr;
}

}  // namespace ard::cpu
