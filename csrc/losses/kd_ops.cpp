#include "losses/kd.h"
#include "losses/loss_checks.h"

namespace ard {
namespace {

// As the schema has them.
struct KdInputs {
  const Tensor& student;                                        // [B, C]
  const Tensor& teacher;                                        // [B, C]
  const std::optional<Tensor>& clean;                           // [B, C]
  const std::optional<Tensor>& labels;                          // [B] int64
  const std::optional<Tensor>& weight;                          // [B] float
  const std::optional<Tensor>& teacher_temperature_per_sample;  // [B] float
  const std::optional<Tensor>& clean_temperature_per_sample;    // [B] float
  double temperature, teacher_temperature, clean_teacher_temperature;
  double kl_weight, clean_weight, kl_grad_weight, clean_grad_weight;
};

struct KdOutputs {
  Tensor loss_rows, grad_student, grad_clean, grad_teacher, grad_scale;
};

KdLossParams pack_kd_loss(const KdInputs& in, bool with_grad, bool with_teacher_grad, bool scaled,
                          KdOutputs& out) {
  const Tensor& student = in.student;
  check_float_dtype(student, "student_logits");
  check_logits(student, "student_logits", student, "student_logits");
  check_logits(in.teacher, "teacher_logits", student, "student_logits");
  ARD_CHECK(student.size(1) >= 1, "student_logits must have at least one class, got shape ",
            shape_of(student));
  const auto check_temperature = [](double value, const char* name) {
    ARD_CHECK(value > 0.0, name, " must be positive, got ", value);
  };
  check_temperature(in.temperature, "temperature");
  check_temperature(in.teacher_temperature, "teacher_temperature");
  check_temperature(in.clean_teacher_temperature, "clean_teacher_temperature");
  const bool kl_of_clean = in.clean && !in.labels;
  ARD_CHECK(in.clean || !in.labels, "labels need student_logits (clean), got none");
  ARD_CHECK(kl_of_clean || !in.clean_temperature_per_sample,
            "clean_teacher_temperature needs student_logits (clean) without labels");
  ARD_CHECK(
      !(kl_of_clean && with_teacher_grad),
      "with_teacher_grad must be false for two students: teacher_logits have no gradient there");
  ARD_CHECK(!scaled || (with_grad && !in.clean),
            "scaled needs with_grad and no student_logits (clean): it is for one gradient a row");
  if (in.clean) check_logits(*in.clean, "student_logits (clean)", student, "student_logits");
  check_per_sample(in.labels, "labels", student, ScalarType::Long, "int64", "student_logits");
  const auto check_factor = [&](const std::optional<Tensor>& t, const char* name) {
    check_per_sample(t, name, student, ScalarType::Float, "float32", "student_logits");
  };
  check_factor(in.weight, "weight");
  check_factor(in.teacher_temperature_per_sample, "teacher_temperature");
  check_factor(in.clean_temperature_per_sample, "clean_teacher_temperature");

  out.loss_rows = new_rows(student);
  out.grad_student = new_gradient(student, with_grad);
  out.grad_clean = new_gradient(student, with_grad && in.clean);
  out.grad_teacher = new_gradient(student, with_teacher_grad);
  out.grad_scale = new_rows(student, scaled);

  KdLossParams p{};
  p.student = student.data_ptr();
  p.teacher = in.teacher.data_ptr();
  p.clean = in.clean ? in.clean->data_ptr() : nullptr;
  p.labels = data_or_null<int64_t>(in.labels);
  p.weight = data_or_null<float>(in.weight);
  p.teacher_temperature = data_or_null<float>(in.teacher_temperature_per_sample);
  p.clean_teacher_temperature = data_or_null<float>(in.clean_temperature_per_sample);
  p.loss_rows = static_cast<float*>(out.loss_rows.data_ptr());
  p.grad_student = with_grad ? out.grad_student.data_ptr() : nullptr;
  p.grad_clean = with_grad && in.clean ? out.grad_clean.data_ptr() : nullptr;
  p.grad_teacher = with_teacher_grad ? out.grad_teacher.data_ptr() : nullptr;
  p.grad_scale = scaled ? static_cast<float*>(out.grad_scale.data_ptr()) : nullptr;
  p.batch = student.size(0);
  p.classes = student.size(1);
  p.student_stride = student.stride(0);
  p.teacher_stride = in.teacher.stride(0);
  p.clean_stride = in.clean ? in.clean->stride(0) : 0;
  p.inv_temperature = float(1.0 / in.temperature);
  p.inv_teacher_temperature = float(1.0 / in.teacher_temperature);
  p.inv_clean_teacher_temperature = float(1.0 / in.clean_teacher_temperature);
  p.kl_weight = float(in.kl_weight);
  p.clean_weight = float(in.clean_weight);
  p.kl_grad_weight = float(in.kl_grad_weight / in.temperature);
  p.clean_grad_weight =
      float(kl_of_clean ? in.clean_grad_weight / in.temperature : in.clean_grad_weight);
  return p;
}

void check_positive(const float* values, const char* name, int64_t count) {
  for (int64_t i = 0; values && i < count; ++i) {
    ARD_CHECK(values[i] > 0.0f, name, " must be positive, got ", values[i], " at position ", i);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> kd_loss(
    const Tensor student, const Tensor teacher, std::optional<Tensor> clean,
    std::optional<Tensor> labels, std::optional<Tensor> weight,
    std::optional<Tensor> teacher_temperature_per_sample,
    std::optional<Tensor> clean_temperature_per_sample, double temperature,
    double teacher_temperature, double clean_teacher_temperature, double kl_weight,
    double clean_weight, double kl_grad_weight, double clean_grad_weight, bool reduce,
    bool with_grad, bool with_teacher_grad, bool scaled) {
  KdOutputs out;
  const KdLossParams p = pack_kd_loss(
      {student, teacher, clean, labels, weight, teacher_temperature_per_sample,
       clean_temperature_per_sample, temperature, teacher_temperature, clean_teacher_temperature,
       kl_weight, clean_weight, kl_grad_weight, clean_grad_weight},
      with_grad, with_teacher_grad, scaled, out);
  if (!on_gpu(student)) {
    check_in_range(p.labels, "labels", p.batch, p.classes);
    check_positive(p.teacher_temperature, "teacher_temperature", p.batch);
    check_positive(p.clean_teacher_temperature, "clean_teacher_temperature", p.batch);
  }
  const Dtype dtype = dtype_tag(student);
  const Tensor loss = run_loss(
      student, out.loss_rows, reduce,
      [&](float* total, auto stream) { cuda::launch_kd_loss(p, dtype, total, stream); },
      [&](auto begin, auto end) { cpu::kd_loss(p, dtype, begin, end); });
  return {loss, out.grad_student, out.grad_clean, out.grad_teacher, out.grad_scale};
}

// grad [B, C] contiguous, scale [] or [B].
void check_scale_rows(const Tensor& grad, const Tensor& scale) {
  check_float_dtype(grad, "grad");
  ARD_CHECK(grad.dim() == 2 && grad.is_contiguous(), "grad must be a contiguous [B, C], got ",
            shape_of(grad));
  check_dtype(scale, "scale", ScalarType::Float, "float32");
  ARD_CHECK(scale.numel() == 1 || (scale.dim() == 1 && scale.size(0) == grad.size(0)),
            "scale must have one element or shape [B], got ", shape_of(scale));
  ARD_CHECK(scale.dim() == 0 || scale.is_contiguous(), "scale must be contiguous");
  check_device(scale, "scale", grad, "grad");
  check_apart(grad, "grad", scale, "scale");
}

void scale_rows_(Tensor grad, const Tensor scale, double factor) {
  check_scale_rows(grad, scale);
  const Dtype dtype = dtype_tag(grad);
  const int64_t classes = grad.size(1);
  const bool per_row = scale.numel() != 1;
  const auto* const scales = static_cast<const float*>(scale.data_ptr());
  if (!on_gpu(grad) && !per_row && scales[0] * float(factor) == 1.0f) return;
  run(
      grad,
      [&](auto stream) {
        cuda::launch_scale_rows(grad.data_ptr(), dtype, grad.numel(), classes, scales, per_row,
                                float(factor), stream);
      },
      grad.size(0), std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, classes)),
      [&](auto begin, auto end) {
        cpu::scale_rows(grad.data_ptr(), dtype, classes, scales, per_row, float(factor), begin,
                        end);
      });
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) {
  m.impl("kd_loss", TORCH_BOX(&ard::kd_loss));
  m.impl("scale_rows_", TORCH_BOX(&ard::scale_rows_));
}
