// The distillation loss on CPU tensors.
#include <algorithm>

#include "bindings/kd_pack.h"
#include "bindings/loss_rows_cpu.h"
#include "cpu/kernels.h"

namespace ard {
namespace {

void check_positive(const float* values, const char* name, int64_t count) {
  for (int64_t i = 0; values && i < count; ++i) {
    ARD_CHECK(values[i] > 0.0f, name, " must be positive, got ", values[i], " at position ", i);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> kd_loss_cpu(
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
  check_labels_in_range(p.labels, p.batch, p.classes);
  check_positive(p.teacher_temperature, "teacher_temperature", p.batch);
  check_positive(p.clean_teacher_temperature, "clean_teacher_temperature", p.batch);
  const Dtype dtype = dtype_tag(student);
  const int64_t grain = std::max<int64_t>(1, (1 << 12) / p.classes);
  torch::stable::parallel_for(
      0, p.batch, grain, [&](int64_t begin, int64_t end) { cpu::kd_loss(p, dtype, begin, end); });
  return {reduce ? sum_of_rows(out.loss_rows) : out.loss_rows, out.grad_student, out.grad_clean,
          out.grad_teacher, out.grad_scale};
}

void scale_rows_cpu(Tensor grad, const Tensor scale, double factor) {
  check_scale_rows(grad, scale);
  const int64_t classes = grad.size(1);
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, classes));
  torch::stable::parallel_for(0, grad.size(0), grain, [&](int64_t begin, int64_t end) {
    cpu::scale_rows(grad.data_ptr(), dtype_tag(grad), classes,
                    static_cast<const float*>(scale.data_ptr()), scale.numel() != 1, float(factor),
                    begin, end);
  });
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("kd_loss", TORCH_BOX(&ard::kd_loss_cpu));
  m.impl("scale_rows_", TORCH_BOX(&ard::scale_rows_cpu));
}
