// The L-infinity step and the random start on CPU tensors.
#include "bindings/pgd_pack.h"
#include "cpu/kernels.h"

namespace ard {
namespace {

void pgd_linf_step_cpu(Tensor x_adv, const Tensor grad, const Tensor x,
                       std::optional<Tensor> step_size_per_sample,
                       std::optional<Tensor> eps_per_sample, double step_size, double eps,
                       bool targeted, double lower, double upper) {
  const PgdLinfParams p = pack_pgd_linf_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                             step_size, eps, targeted, lower, upper);
  const Dtype dtype = dtype_tag(grad);
  torch::stable::parallel_for(0, p.numel, 1 << 15, [&](int64_t begin, int64_t end) {
    cpu::pgd_linf_step(p, dtype, begin, end);
  });
}

Tensor random_start_cpu(const Tensor x, std::optional<Tensor> eps_per_sample, double eps,
                        const Tensor seed, std::optional<Tensor> sample_ids, bool normal,
                        double std, bool clamp, double lower, double upper) {
  RandomStartParams p =
      pack_random_start(x, eps_per_sample, eps, seed, sample_ids, normal, std, clamp, lower, upper);
  Tensor out = empty_with_layout_of(x);
  p.out = static_cast<float*>(out.data_ptr());
  torch::stable::parallel_for(
      0, p.batch * ((p.sample_numel + 3) / 4), 1 << 12,
      [&](int64_t begin, int64_t end) { cpu::random_start(p, begin, end); });
  return out;
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("pgd_linf_step_", TORCH_BOX(&ard::pgd_linf_step_cpu));
  m.impl("random_start", TORCH_BOX(&ard::random_start_cpu));
}
