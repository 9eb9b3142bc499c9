// attack_gradient on CUDA tensors.
#include "bindings/attack_gradient_pack.h"
#include "bindings/cuda_scope.h"
#include "cuda/attack_gradient_launch.h"

namespace ard {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> attack_gradient_cuda(
    const Tensor logits, const Tensor labels, std::optional<Tensor> target_classes, int64_t loss,
    double kappa, bool with_rows, bool scaled) {
  const Scope scope(logits);
  AttackGradientOutputs out;
  const AttackGradientParams p =
      pack_attack_gradient(logits, labels, target_classes, loss, kappa, with_rows, scaled, out);
  cuda::launch_attack_gradient(p, dtype_tag(logits), scope.stream());
  scope.check_launch();
  return {out.grad, out.loss_rows, out.correct, out.grad_scale};
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("attack_gradient", TORCH_BOX(&ard::attack_gradient_cuda));
}
