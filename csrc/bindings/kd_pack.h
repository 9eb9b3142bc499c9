// The distillation loss: from checked tensors to its params struct, the same for CPU and CUDA.
#pragma once

#include <array>

#include "bindings/checks.h"

namespace ard {

inline void check_logits(const Tensor& t, const char* name, const Tensor& student) {
  ARD_CHECK(t.dim() == 2, name, " must be logits of shape [B, C], got ", shape_of(t));
  check_like(t, name, student, "student_logits");
  ARD_CHECK(t.scalar_type() == student.scalar_type(), name,
            " must have the dtype of student_logits (", dtype_of(student), "), got ", dtype_of(t));
  ARD_CHECK(t.size(1) == 1 || t.stride(1) == 1 || t.numel() == 0, name,
            " must have its classes contiguous in memory");
}

struct KdWeights {
  double kl, ce, kl_grad, ce_grad;
};

struct KdOutputs {
  Tensor loss_rows, grad_student, grad_clean, grad_teacher;
};

inline KdLossParams pack_kd_loss(const Tensor& student,                // [B, C]
                                 const Tensor& teacher,                // [B, C]
                                 const std::optional<Tensor>& clean,   // [B, C]
                                 const std::optional<Tensor>& labels,  // [B] int64
                                 double temperature, const KdWeights& weights, bool with_grad,
                                 bool with_teacher_grad, KdOutputs& out) {
  check_float_dtype(student, "student_logits");
  check_logits(student, "student_logits", student);
  check_logits(teacher, "teacher_logits", student);
  ARD_CHECK(student.size(1) >= 1, "student_logits must have at least one class, got shape ",
            shape_of(student));
  ARD_CHECK(temperature > 0.0, "temperature must be positive, got ", temperature);
  ARD_CHECK(clean.has_value() == labels.has_value(),
            "clean student_logits and labels must be given together");
  if (clean) {
    check_logits(*clean, "student_logits (clean)", student);
    check_per_sample(labels, "labels", student, ScalarType::Long, "int64");
  }
  const int64_t batch = student.size(0), classes = student.size(1);
  const std::array<int64_t, 1> rows{batch};
  const std::array<int64_t, 1> none{0};
  const std::array<int64_t, 2> full{batch, classes};
  const auto grad_like = [&](bool wanted) {
    return wanted ? torch::stable::new_empty(student, {full.data(), full.size()})
                  : torch::stable::new_empty(student, {none.data(), none.size()});
  };
  out.loss_rows = torch::stable::new_empty(student, {rows.data(), rows.size()}, ScalarType::Float);
  out.grad_student = grad_like(with_grad);
  out.grad_clean = grad_like(with_grad && clean.has_value());
  out.grad_teacher = grad_like(with_teacher_grad);

  KdLossParams p{};
  p.student = student.data_ptr();
  p.teacher = teacher.data_ptr();
  p.clean = clean ? clean->data_ptr() : nullptr;
  p.labels = data_or_null<int64_t>(labels);
  p.loss_rows = static_cast<float*>(out.loss_rows.data_ptr());
  p.grad_student = with_grad ? out.grad_student.data_ptr() : nullptr;
  p.grad_clean = with_grad && clean ? out.grad_clean.data_ptr() : nullptr;
  p.grad_teacher = with_teacher_grad ? out.grad_teacher.data_ptr() : nullptr;
  p.batch = batch;
  p.classes = classes;
  p.student_stride = student.stride(0);
  p.teacher_stride = teacher.stride(0);
  p.clean_stride = clean ? clean->stride(0) : 0;
  p.inv_temperature = float(1.0 / temperature);
  p.kl_weight = float(weights.kl);
  p.ce_weight = float(weights.ce);
  p.kl_grad_weight = float(weights.kl_grad / temperature);
  p.ce_grad_weight = float(weights.ce_grad);
  return p;
}

// grad [B, C] contiguous, scale [] or [B].
inline void check_scale_rows(const Tensor& grad, const Tensor& scale) {
  check_float_dtype(grad, "grad");
  ARD_CHECK(grad.dim() == 2 && grad.is_contiguous(), "grad must be a contiguous [B, C], got ",
            shape_of(grad));
  check_dtype(scale, "scale", ScalarType::Float, "float32");
  ARD_CHECK(scale.numel() == 1 || (scale.dim() == 1 && scale.size(0) == grad.size(0)),
            "scale must have one element or shape [B], got ", shape_of(scale));
  ARD_CHECK(scale.dim() == 0 || scale.is_contiguous(), "scale must be contiguous");
  check_device(scale, "scale", grad, "grad");
}

}  // namespace ard
