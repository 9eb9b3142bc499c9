// The L-infinity step and the random start on CUDA tensors.
#include "bindings/cuda_scope.h"
#include "bindings/pgd_pack.h"
#include "cuda/launch.h"

namespace ard {
namespace {

void pgd_linf_step_cuda(Tensor x_adv, const Tensor grad, const Tensor x,
                        std::optional<Tensor> step_size_per_sample,
                        std::optional<Tensor> eps_per_sample, double step_size, double eps,
                        bool targeted, double lower, double upper) {
  const PgdLinfParams p = pack_pgd_linf_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                             step_size, eps, targeted, lower, upper);
  const Scope scope(x_adv);
  cuda::launch_pgd_linf_step(p, dtype_tag(grad), scope.stream());
  scope.check_launch();
}

Tensor random_start_cuda(const Tensor x, std::optional<Tensor> eps_per_sample, double eps,
                         const Tensor seed, std::optional<Tensor> sample_ids, bool normal,
                         double std, bool clamp, double lower, double upper) {
  RandomStartParams p =
      pack_random_start(x, eps_per_sample, eps, seed, sample_ids, normal, std, clamp, lower, upper);
  const Scope scope(x);
  Tensor out = empty_with_layout_of(x);
  p.out = static_cast<float*>(out.data_ptr());
  cuda::launch_random_start(p, scope.stream());
  scope.check_launch();
  return out;
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("pgd_linf_step_", TORCH_BOX(&ard::pgd_linf_step_cuda));
  m.impl("random_start", TORCH_BOX(&ard::random_start_cuda));
}
