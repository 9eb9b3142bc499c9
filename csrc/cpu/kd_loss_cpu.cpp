// The loss is compared by tolerance, not by bits: multiply-adds may fuse here, unlike elsewhere,
// which is 13 % of the time. Compilers that do not know the pragma lose only that.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast")
#endif

#include <memory>

#include "core/kd_math.h"
#include "cpu/ce_row.h"
#include "cpu/kernels.h"
#include "cpu/row_view.h"

namespace ard::cpu {
namespace {

// What a thread keeps between the passes over a row: converted logits (s, t), gaps (over t),
// weights.
struct Scratch {
  explicit Scratch(int64_t classes)
      : padded((classes + kLanes - 1) / kLanes * kLanes),
        data(new float[3 * padded]),
        s(data.get()),
        t(s + padded),
        w(t + padded) {}
  const int64_t padded;
  const std::unique_ptr<float[]> data;
  float* const s;
  float* const t;
  float* const w;
};

// The KL of one row; writes grad_weight * (p_student - p_teacher) unless grad is null, and the
// gradient for the teacher unless that is.
// Vector loops only; the mathematics is in kd_math.h.
template <typename T>
ARD_HD float kl_row(const RowView& student, const RowView& teacher, const Scratch& b,
                    float inv_temperature, int64_t classes, float grad_weight, T* __restrict grad,
                    T* __restrict grad_teacher) {
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
  KdRow row = kd_row_begin(at_top, top, inv_temperature);

  double weight_sum = 0.0, weighted_gap_sum = 0.0;
  float max_gap[kLanes], min_gap[kLanes];
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    max_gap[l] = -INFINITY;
    min_gap[l] = INFINITY;
  }
  for (int64_t block = 0; block < b.padded; block += kSumBlock) {
    const int64_t stop = block + kSumBlock < b.padded ? block + kSumBlock : b.padded;
    float weights[kLanes] = {}, gaps[kLanes] = {};
    for (int64_t c = block; c < stop; c += kLanes) {
      const float* sv = student.vector_at(c);
      const float* tv = teacher.vector_at(c);
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        float extreme;
        const KdWeighed e = kd_weigh(row, sv[l], tv[l], extreme);
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
  if (!kd_row_set_sums(row, KdSums{float(weight_sum), float(weighted_gap_sum), lane_max(max_gap),
                                   lane_min(min_gap)})) {
    kd_row_set_range(row, kd_scaled(row, vector_max(student)));
  }

  if (grad_teacher) {
    for (int64_t c = 0; c < classes; ++c) {
      grad_teacher[c] = from_float<T>(kd_teacher_grad(row, gap[c], w[c]) * grad_weight);
    }
  }

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
        ARD_LANES for (int l = 0; l < kLanes; ++l) {
          sums[l] += kd_far_weight(row, kd_scaled(row, sv[l]));
        }
      }
    }
    sum += lane_sum(sums);
  }

  if (row.range == KdRange::near) sum *= row.inv_z;
  const float kl = kd_row_finish(row, float(sum));
  if (!grad) return kl;
  if (row.range == KdRange::near) {
    const float weight = grad_weight * row.inv_z / (1.0f + row.excess);
    for (int64_t c = 0; c < classes; ++c) {
      grad[c] = from_float<T>(w[c] * (diff[c] - row.excess) * weight);
    }
  } else if (row.range == KdRange::middle) {
    const float weight = grad_weight / (1.0f + row.excess);
    for (int64_t c = 0; c < classes; ++c) {
      grad[c] = from_float<T>(kd_close_grad(row, w[c], diff[c]) * weight);
    }
  } else {
    const float* logits = student.data;
    for (int64_t c = 0; c < classes; ++c) {
      const float a = kd_scaled(row, logits[c]);
      grad[c] = from_float<T>(kd_far_grad(row, a, w[c]) * grad_weight);
    }
  }
  return kl;
}

template <typename T>
ARD_HD T* row_or_null(void* data, int64_t row, int64_t classes) {
  return data ? static_cast<T*>(data) + row * classes : nullptr;
}

template <typename T>
ARD_HD void kd_rows(const KdLossParams& p, const Scratch& b, int64_t begin, int64_t end) {
  float tails[2][kLanes];
  for (int64_t i = begin; i < end; ++i) {
    const RowView student = view_row(static_cast<const T*>(p.student) + i * p.student_stride,
                                     p.classes, b.padded, b.s, tails[0]);
    const RowView teacher = view_row(static_cast<const T*>(p.teacher) + i * p.teacher_stride,
                                     p.classes, b.padded, b.t, tails[1]);
    float loss =
        p.kl_weight * kl_row(student, teacher, b, p.inv_temperature, p.classes, p.kl_grad_weight,
                             row_or_null<T>(p.grad_student, i, p.classes),
                             row_or_null<T>(p.grad_teacher, i, p.classes));
    if (p.clean) {
      const RowView clean = view_row(static_cast<const T*>(p.clean) + i * p.clean_stride, p.classes,
                                     b.padded, b.s, tails[0]);
      const CeRow row = ce_row_of(clean);
      if (p.grad_clean) {
        ce_row_grad(clean, row, p.labels[i], p.classes, p.ce_grad_weight,
                    row_or_null<T>(p.grad_clean, i, p.classes));
      }
      loss += p.ce_weight * ce_loss(row, clean.data[p.labels[i]]);
    }
    p.loss_rows[i] = loss;
  }
}

ARD_CLONES void rows_f32(const KdLossParams& p, const Scratch& b, int64_t begin, int64_t end) {
  kd_rows<float>(p, b, begin, end);
}

ARD_CLONES void rows_f16(const KdLossParams& p, const Scratch& b, int64_t begin, int64_t end) {
  kd_rows<f16>(p, b, begin, end);
}

ARD_CLONES void rows_bf16(const KdLossParams& p, const Scratch& b, int64_t begin, int64_t end) {
  kd_rows<bf16>(p, b, begin, end);
}

template <typename T>
ARD_HD void scale_row(T* grad, int64_t count, float scale) {
  for (int64_t i = 0; i < count; ++i) grad[i] = from_float<T>(to_float(grad[i]) * scale);
}

ARD_CLONES void scale_f32(float* grad, int64_t count, float scale) {
  scale_row(grad, count, scale);
}
ARD_CLONES void scale_f16(f16* grad, int64_t count, float scale) { scale_row(grad, count, scale); }
ARD_CLONES void scale_bf16(bf16* grad, int64_t count, float scale) {
  scale_row(grad, count, scale);
}

}  // namespace

void kd_loss(const KdLossParams& p, Dtype dtype, int64_t begin, int64_t end) {
  const Scratch scratch(p.classes);
  switch (dtype) {
    case Dtype::f32:
      return rows_f32(p, scratch, begin, end);
    case Dtype::f16:
      return rows_f16(p, scratch, begin, end);
    case Dtype::bf16:
      return rows_bf16(p, scratch, begin, end);
  }
}

void scale_rows(void* grad, Dtype dtype, int64_t classes, const float* scale, bool per_row,
                float factor, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float by = factor * scale[per_row ? i : 0];
    if (by == 1.0f) continue;
    switch (dtype) {
      case Dtype::f32:
        scale_f32(static_cast<float*>(grad) + i * classes, classes, by);
        break;
      case Dtype::f16:
        scale_f16(static_cast<f16*>(grad) + i * classes, classes, by);
        break;
      case Dtype::bf16:
        scale_bf16(static_cast<bf16*>(grad) + i * classes, classes, by);
        break;
    }
  }
}

}  // namespace ard::cpu
