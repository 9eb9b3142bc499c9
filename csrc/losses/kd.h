// The distillation loss. Its maths, that of rows of logits, is in rows.h.
#pragma once

#include "common/half.h"

namespace ard {

// B batch, C classes.
// loss_row = weight * (kl_weight * KL + clean_weight * (CE of clean with labels, KL of clean
// without))
struct KdLossParams {
  const void* student;                     // [B, C] logits on the adversarial image
  const void* teacher;                     // [B, C] logits on the clean image
  const void* clean;                       // [B, C] student logits on the clean image, or null
  const int64_t* labels;                   // [B], or null
  const float* weight;                     // [B], or null for 1
  const float* teacher_temperature;        // [B], or null
  const float* clean_teacher_temperature;  // [B], or null; of the teacher in the KL of clean
  float* loss_rows;                        // [B]
  void* grad_student;                      // [B, C] contiguous, or null
  void* grad_clean;                        // [B, C] contiguous, or null
  void* grad_teacher;                      // [B, C] contiguous, or null; not with a KL of clean
  float* grad_scale;  // [B], the power of two that each row of grad_student and
                      // grad_teacher was multiplied by, or null for none
  int64_t batch;
  int64_t classes;
  int64_t student_stride, teacher_stride, clean_stride;          // elements between rows
  float inv_temperature;                                         // of the student
  float inv_teacher_temperature, inv_clean_teacher_temperature;  // used when those above are null
  float kl_weight, clean_weight;
  // grad_student = weight * kl_grad_weight * (p_student - p_teacher); also the weight of
  // grad_teacher, which has the factor T_student / T_teacher besides
  float kl_grad_weight;
  float clean_grad_weight;  // grad_clean = weight * clean_grad_weight * (p_clean - target)
};

namespace cpu {

// Rows [begin, end).
void kd_loss(const KdLossParams& p, Dtype dtype, int64_t begin, int64_t end);

// Rows [begin, end) of grad [B, C], contiguous: grad *= factor * scale of the row; scale [] or,
// per_row, [B].
void scale_rows(void* grad, Dtype dtype, int64_t classes, const float* scale, bool per_row,
                float factor, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

// total: [] or null to leave the rows unsummed.
void launch_kd_loss(const KdLossParams& p, Dtype dtype, float* total, Stream stream);

void launch_scale_rows(void* grad, Dtype dtype, int64_t numel, int64_t classes, const float* scale,
                       bool per_row, float factor, Stream stream);

}  // namespace cuda

}  // namespace ard
