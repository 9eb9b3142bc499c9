// The Auto-PGD step on CPU tensors.
#include <algorithm>

#include "bindings/apgd_pack.h"
#include "cpu/kernels.h"

namespace ard {
namespace {

void apgd_step_cpu(Tensor x_adv, Tensor x_prev, Tensor x_best, Tensor grad_best, Tensor x_fooled,
                   const Tensor state, Tensor state_out, std::optional<Tensor> grad, const Tensor x,
                   const Tensor loss_rows, const Tensor correct,
                   std::optional<Tensor> eps_per_sample, double eps, bool l2, bool first,
                   int64_t window, double rho, double momentum, double lower, double upper) {
  const ApgdParams p = pack_apgd_step(x_adv, x_prev, x_best, grad_best, x_fooled, state, state_out,
                                      grad, x, loss_rows, correct, eps_per_sample, eps, first,
                                      window, rho, momentum, lower, upper);
  const Dtype dtype = dtype_tag(grad_best);
  const int64_t pieces = l2 ? 1 : cpu::apgd_linf_pieces(p.sample_numel);
  const int64_t grain = std::max<int64_t>(1, (1 << 15) * pieces / (p.sample_numel + 1));
  torch::stable::parallel_for(0, p.batch * pieces, grain, [&](int64_t begin, int64_t end) {
    if (l2) {
      cpu::apgd_l2_step(p, dtype, begin, end);
    } else {
      cpu::apgd_linf_step(p, dtype, begin, end);
    }
  });
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("apgd_step_", TORCH_BOX(&ard::apgd_step_cpu));
}
