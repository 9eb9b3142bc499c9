// The losses of adversarial and clean logits on CUDA tensors.
#include "bindings/cuda_scope.h"
#include "bindings/pair_pack.h"
#include "cuda/pair_launch.h"

namespace ard {
namespace {

std::tuple<Tensor, Tensor, Tensor> pair_loss_cuda(const Tensor adv, const Tensor clean,
                                                  const Tensor labels, std::optional<Tensor> weight,
                                                  bool mart, double kl_weight, double ce_weight,
                                                  double kl_grad_weight, double ce_grad_weight,
                                                  bool reduce, bool with_grad) {
  const Scope scope(adv);
  PairOutputs out;
  const PairLossParams p = pack_pair_loss(
      {adv, clean, labels, weight, mart, kl_weight, ce_weight, kl_grad_weight, ce_grad_weight},
      with_grad, out);
  Tensor loss = out.loss_rows;
  float* total = nullptr;
  if (reduce) {
    loss = torch::stable::new_empty(adv, {}, ScalarType::Float);
    total = static_cast<float*>(loss.data_ptr());
  }
  cuda::launch_pair_loss(p, dtype_tag(adv), total, scope.stream());
  scope.check_launch();
  return {loss, out.grad_adv, out.grad_clean};
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("pair_loss", TORCH_BOX(&ard::pair_loss_cuda));
}
