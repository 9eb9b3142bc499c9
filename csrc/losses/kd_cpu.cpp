#include "losses/fused.h"  // before all others

#include "losses/kd.h"
#include "losses/rows_cpu.h"

namespace ard::cpu {
namespace {

constexpr int kKdArrays = 5;  // beside those of kl_rows

// The KL of one student's rows, the first's or the second's, the clean one; writes its gradients.
Lanes kl_of_student(const KdLossParams& p, bool second, Dtype dtype, const Block& block,
                    const BlockScratch& b, const float* teacher, const Lanes& weight) {
  void* const grad = second ? p.grad_clean : p.grad_student;
  void* const grad_teacher = second ? nullptr : p.grad_teacher;
  const float* const temperature = second ? p.clean_teacher_temperature : p.teacher_temperature;
  KlRows rows;
  rows.student = load_rows(block, second ? p.clean : p.student, dtype,
                           second ? p.clean_stride : p.student_stride, b[1]);
  rows.teacher = teacher;
  rows.weights = b[2];
  rows.to_student = place_rows(block, grad, dtype, b[3]);
  rows.to_teacher = place_rows(block, grad_teacher, dtype, b[4]);
  rows.inv_temperature = p.inv_temperature;
  const Lanes per_row = row_values(block, temperature, 0.0f);
  for (int l = 0; l < kLanes; ++l) {
    const float inv_teacher =
        kd_inv_temperature(temperature ? per_row.at : nullptr, l,
                           second ? p.inv_clean_teacher_temperature : p.inv_teacher_temperature);
    rows.inv_teacher_temperature.at[l] = inv_teacher;
    rows.grad_weight.at[l] = weight.at[l] * (second ? p.clean_grad_weight : p.kl_grad_weight);
    rows.teacher_grad_weight.at[l] = rows.grad_weight.at[l] * (inv_teacher / p.inv_temperature);
  }
  kl_rows(block, rows, b, kKdArrays);
  if (p.grad_scale && !second) {
    const Lanes scales = scale_kl_gradients(block, rows);
    for (int64_t r = 0; r < block.count; ++r) p.grad_scale[block.row + r] = scales.at[r];
  }
  store_rows(block, rows.to_student, grad, dtype);
  store_rows(block, rows.to_teacher, grad_teacher, dtype);
  return rows.kl;
}

Lanes ce_of_clean(const KdLossParams& p, Dtype dtype, const Block& block, const BlockScratch& b,
                  const Lanes& weight) {
  const float* const clean = load_rows(block, p.clean, dtype, p.clean_stride, b[1]);
  const int64_t* const labels = p.labels + block.row;
  const CeRows rows = ce_of_logits(block, clean, b[2]);
  if (float* const grad = place_rows(block, p.grad_clean, dtype, b[3])) {
    ce_gradient(block, rows, b[2], labels, weight * p.clean_grad_weight, grad);
    store_rows(block, grad, p.grad_clean, dtype);
  }
  Lanes loss;
  for (int64_t r = 0; r < block.count; ++r) {
    loss.at[r] = ce_loss(rows.of(r), clean[block.index(r, labels[r])]);
  }
  return loss;
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
  const BlockScratch b(p.classes, kKdArrays + kKlArrays);
  each_block(p.classes, begin, end, [&](const Block& block) {
    const Lanes weight = row_values(block, p.weight, 1.0f);
    const float* const teacher = load_rows(block, p.teacher, dtype, p.teacher_stride, b[0]);
    const Lanes first = kl_of_student(p, false, dtype, block, b, teacher, weight);
    const Lanes second = p.labels  ? ce_of_clean(p, dtype, block, b, weight)
                         : p.clean ? kl_of_student(p, true, dtype, block, b, teacher, weight)
                                   : all_lanes(0.0f);
    for (int64_t r = 0; r < block.count; ++r) {
      p.loss_rows[block.row + r] =
          weighted_loss(weight.at[r], p.kl_weight, first.at[r], p.clean_weight, second.at[r]);
    }
  });
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
