// The steps along a normalised gradient and the selection of the best iterate on CUDA tensors.
#include "bindings/cuda_scope.h"
#include "bindings/norm_pack.h"
#include "cuda/norm_launch.h"

namespace ard {
namespace {

void pgd_l2_step_cuda(Tensor x_adv, const Tensor grad, const Tensor x,
                      std::optional<Tensor> step_size_per_sample,
                      std::optional<Tensor> eps_per_sample, double step_size, double eps,
                      bool targeted, double lower, double upper) {
  const NormStepParams p = pack_norm_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                          step_size, eps, targeted, lower, upper);
  const Scope scope(x_adv);
  cuda::launch_pgd_l2_step(p, dtype_tag(grad), scope.stream());
  scope.check_launch();
}

void mifgsm_step_cuda(Tensor x_adv, Tensor momentum, const Tensor grad, const Tensor x,
                      std::optional<Tensor> step_size_per_sample,
                      std::optional<Tensor> eps_per_sample, double step_size, double eps,
                      double decay, bool targeted, double lower, double upper) {
  const NormStepParams p =
      pack_mifgsm_step(x_adv, momentum, grad, x, step_size_per_sample, eps_per_sample, step_size,
                       eps, decay, targeted, lower, upper);
  const Scope scope(x_adv);
  cuda::launch_mifgsm_step(p, dtype_tag(grad), scope.stream());
  scope.check_launch();
}

void select_best_cuda(Tensor best, const Tensor candidate, const Tensor best_loss,
                      const Tensor loss, Tensor best_loss_out, bool lower) {
  const SelectParams p = pack_select_best(best, candidate, best_loss, loss, best_loss_out, lower);
  const Scope scope(best);
  cuda::launch_select_best(p, scope.stream());
  scope.check_launch();
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("pgd_l2_step_", TORCH_BOX(&ard::pgd_l2_step_cuda));
  m.impl("mifgsm_step_", TORCH_BOX(&ard::mifgsm_step_cuda));
  m.impl("select_best_", TORCH_BOX(&ard::select_best_cuda));
}
