// The distillation loss on CPU tensors.
#include <algorithm>

#include "bindings/kd_pack.h"
#include "cpu/kernels.h"

namespace ard {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> kd_loss_cpu(const Tensor student, const Tensor teacher,
                                                       std::optional<Tensor> clean,
                                                       std::optional<Tensor> labels,
                                                       double temperature, double kl_weight,
                                                       double ce_weight, double kl_grad_weight,
                                                       double ce_grad_weight, bool reduce,
                                                       bool with_grad, bool with_teacher_grad) {
  KdOutputs out;
  const KdLossParams p = pack_kd_loss(student, teacher, clean, labels, temperature,
                                      {kl_weight, ce_weight, kl_grad_weight, ce_grad_weight},
                                      with_grad, with_teacher_grad, out);
  for (int64_t i = 0; p.labels && i < p.batch; ++i) {
    ARD_CHECK(p.labels[i] >= 0 && p.labels[i] < p.classes, "labels must be in [0, ", p.classes,
              "), got ", p.labels[i], " at position ", i);
  }
  const Dtype dtype = dtype_tag(student);
  const int64_t grain = std::max<int64_t>(1, (1 << 12) / p.classes);
  torch::stable::parallel_for(
      0, p.batch, grain, [&](int64_t begin, int64_t end) { cpu::kd_loss(p, dtype, begin, end); });
  if (!reduce) return {out.loss_rows, out.grad_student, out.grad_clean, out.grad_teacher};
  Tensor total = torch::stable::new_empty(student, {}, ScalarType::Float);
  double sum = 0.0;
  for (int64_t i = 0; i < p.batch; ++i) sum += p.loss_rows[i];
  *static_cast<float*>(total.data_ptr()) = float(sum);
  return {total, out.grad_student, out.grad_clean, out.grad_teacher};
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
