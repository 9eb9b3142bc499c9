// The Auto-PGD step on CUDA tensors.
#include "bindings/apgd_pack.h"
#include "bindings/cuda_scope.h"
#include "cuda/apgd_launch.h"

namespace ard {
namespace {

void apgd_step_cuda(Tensor x_adv, Tensor x_prev, Tensor x_best, Tensor grad_best, Tensor x_fooled,
                    const Tensor state, Tensor state_out, std::optional<Tensor> grad,
                    const Tensor x, const Tensor loss_rows, const Tensor correct,
                    std::optional<Tensor> eps_per_sample, double eps, bool l2, bool first,
                    int64_t window, double rho, double momentum, double lower, double upper) {
  const ApgdParams p = pack_apgd_step(x_adv, x_prev, x_best, grad_best, x_fooled, state, state_out,
                                      grad, x, loss_rows, correct, eps_per_sample, eps, first,
                                      window, rho, momentum, lower, upper);
  const Scope scope(x_adv);
  if (!grad) {
    cuda::launch_apgd_finish(p, scope.stream());
  } else if (l2) {
    cuda::launch_apgd_l2_step(p, dtype_tag(grad_best), scope.stream());
  } else {
    cuda::launch_apgd_linf_step(p, dtype_tag(grad_best), scope.stream());
  }
  scope.check_launch();
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("apgd_step_", TORCH_BOX(&ard::apgd_step_cuda));
}
