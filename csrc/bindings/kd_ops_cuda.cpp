// The distillation loss on CUDA tensors.
#include "bindings/cuda_scope.h"
#include "bindings/kd_pack.h"
#include "cuda/launch.h"

namespace ard {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> kd_loss_cuda(
    const Tensor student, const Tensor teacher, std::optional<Tensor> clean,
    std::optional<Tensor> labels, std::optional<Tensor> weight,
    std::optional<Tensor> teacher_temperature_per_sample,
    std::optional<Tensor> clean_temperature_per_sample, double temperature,
    double teacher_temperature, double clean_teacher_temperature, double kl_weight,
    double clean_weight, double kl_grad_weight, double clean_grad_weight, bool reduce,
    bool with_grad, bool with_teacher_grad, bool scaled) {
  const Scope scope(student);
  KdOutputs out;
  const KdLossParams p = pack_kd_loss(
      {student, teacher, clean, labels, weight, teacher_temperature_per_sample,
       clean_temperature_per_sample, temperature, teacher_temperature, clean_teacher_temperature,
       kl_weight, clean_weight, kl_grad_weight, clean_grad_weight},
      with_grad, with_teacher_grad, scaled, out);
  if (!reduce) {
    cuda::launch_kd_loss(p, dtype_tag(student), nullptr, scope.stream());
    scope.check_launch();
    return {out.loss_rows, out.grad_student, out.grad_clean, out.grad_teacher, out.grad_scale};
  }
  Tensor total = torch::stable::new_empty(student, {}, ScalarType::Float);
  cuda::launch_kd_loss(p, dtype_tag(student), static_cast<float*>(total.data_ptr()),
                       scope.stream());
  scope.check_launch();
  return {total, out.grad_student, out.grad_clean, out.grad_teacher, out.grad_scale};
}

void scale_rows_cuda(Tensor grad, const Tensor scale, double factor) {
  check_scale_rows(grad, scale);
  const Scope scope(grad);
  cuda::launch_scale_rows(grad.data_ptr(), dtype_tag(grad), grad.numel(), grad.size(1),
                          static_cast<const float*>(scale.data_ptr()), scale.numel() != 1,
                          float(factor), scope.stream());
  scope.check_launch();
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("kd_loss", TORCH_BOX(&ard::kd_loss_cuda));
  m.impl("scale_rows_", TORCH_BOX(&ard::scale_rows_cuda));
}
