#include "losses/fused.h"  // before all others

#include "losses/kd.h"
#include "losses/rows_cpu.h"

namespace ard::cpu {
namespace {

// grad = weight * the gradient for the teacher's logits, unless grad is null; unless kept is null
// that goes there first, until the factor of its row is known.
template <typename T>
struct TeacherGradient {
  T* __restrict grad;
  float* __restrict kept;
  int64_t classes;
  float weight;

  ARD_HD void operator()(const KdRow& row, const float* gap, const float* w) const {
    if (kept) {
      for (int64_t c = 0; c < classes; ++c) kept[c] = kd_teacher_grad(row, gap[c], w[c]) * weight;
    } else if (grad) {
      for (int64_t c = 0; c < classes; ++c) {
        grad[c] = from_float<T>(kd_teacher_grad(row, gap[c], w[c]) * weight);
      }
    }
  }

  ARD_HD void finish(float factor) const {
    if (!kept) return;
    for (int64_t c = 0; c < classes; ++c) grad[c] = from_float<T>(kept[c] * factor);
  }
};

// The KL of a student's row and, of the second student's, its KL or cross-entropy.
template <typename T>
ARD_HD void kd_rows(const KdLossParams& p, const KlScratch& b, int64_t begin, int64_t end) {
  float tails[2][kLanes];
  const bool kl_of_clean = p.clean && !p.labels;
  for (int64_t i = begin; i < end; ++i) {
    const float weight = p.weight ? p.weight[i] : 1.0f;
    float terms[2] = {};
    for (int part = 0; part < (kl_of_clean ? 2 : 1); ++part) {
      const bool second = part == 1;
      const void* logits = second ? p.clean : p.student;
      const int64_t stride = second ? p.clean_stride : p.student_stride;
      const RowView student =
          view_row(static_cast<const T*>(logits) + i * stride, p.classes, b.padded, b.s, tails[0]);
      const RowView teacher = view_row(static_cast<const T*>(p.teacher) + i * p.teacher_stride,
                                       p.classes, b.padded, b.t, tails[1]);
      const float inv_teacher =
          second
              ? kd_inv_temperature(p.clean_teacher_temperature, i, p.inv_clean_teacher_temperature)
              : kd_inv_temperature(p.teacher_temperature, i, p.inv_teacher_temperature);
      const float grad_weight = weight * (second ? p.clean_grad_weight : p.kl_grad_weight);
      float* const scale = p.grad_scale && !second ? p.grad_scale + i : nullptr;
      T* const to_teacher = second ? nullptr : row_or_null<T>(p.grad_teacher, i, p.classes);
      const TeacherGradient<T> teacher_gradient{
          to_teacher, scale && to_teacher ? b.extra(0) : nullptr, p.classes,
          grad_weight * (inv_teacher / p.inv_temperature)};
      const float kl =
          kl_row(student, teacher, b, p.inv_temperature, inv_teacher, p.classes, grad_weight,
                 row_or_null<T>(second ? p.grad_clean : p.grad_student, i, p.classes), scale,
                 teacher_gradient);
      if (scale) teacher_gradient.finish(*scale);
      terms[part] = kl;
    }
    if (p.labels) {
      const RowView clean = view_row(static_cast<const T*>(p.clean) + i * p.clean_stride, p.classes,
                                     b.padded, b.s, tails[0]);
      const CeRow row = ce_row_of(clean);
      if (p.grad_clean) {
        ce_row_grad(clean, row, p.labels[i], p.classes, weight * p.clean_grad_weight,
                    row_or_null<T>(p.grad_clean, i, p.classes));
      }
      terms[1] = ce_loss(row, clean.data[p.labels[i]]);
    }
    p.loss_rows[i] = weighted_loss(weight, p.kl_weight, terms[0], p.clean_weight, terms[1]);
  }
}

ARD_CLONES void rows(const KdLossParams& p, float, const KlScratch& b, int64_t begin, int64_t end) {
  kd_rows<float>(p, b, begin, end);
}

ARD_CLONES void rows(const KdLossParams& p, f16, const KlScratch& b, int64_t begin, int64_t end) {
  kd_rows<f16>(p, b, begin, end);
}

ARD_CLONES void rows(const KdLossParams& p, bf16, const KlScratch& b, int64_t begin, int64_t end) {
  kd_rows<bf16>(p, b, begin, end);
}

template <typename T>
ARD_HD void scale_all(T* grad, int64_t count, float scale) {
  for (int64_t i = 0; i < count; ++i) grad[i] = from_float<T>(to_float(grad[i]) * scale);
}

ARD_CLONES void scale_row(float* grad, int64_t count, float scale) {
  scale_all(grad, count, scale);
}
ARD_CLONES void scale_row(f16* grad, int64_t count, float scale) { scale_all(grad, count, scale); }
ARD_CLONES void scale_row(bf16* grad, int64_t count, float scale) { scale_all(grad, count, scale); }

}  // namespace

void kd_loss(const KdLossParams& p, Dtype dtype, int64_t begin, int64_t end) {
  const KlScratch scratch(p.classes, p.grad_scale && p.grad_teacher ? 1 : 0);
  for_dtype(dtype, [&](auto example) { rows(p, example, scratch, begin, end); });
}

void scale_rows(void* grad, Dtype dtype, int64_t classes, const float* scale, bool per_row,
                float factor, int64_t begin, int64_t end) {
  for_dtype(dtype, [&](auto example) {
    for (int64_t i = begin; i < end; ++i) {
      const float by = factor * scale[per_row ? i : 0];
      if (by != 1.0f) scale_row(static_cast<decltype(example)*>(grad) + i * classes, classes, by);
    }
  });
}

}  // namespace ard::cpu
