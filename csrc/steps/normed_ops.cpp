#include "common/operators.h"
#include "steps/normed.h"
#include "steps/step_checks.h"

namespace ard {
namespace {

NormStepParams pack_norm_step(Tensor& x_adv,       // [B, ...] float32, written
                              const Tensor& grad,  // [B, ...]
                              const Tensor& x,     // [B, ...] float32
                              const std::optional<Tensor>& step_size_per_sample,  // [B]
                              const std::optional<Tensor>& eps_per_sample,        // [B]
                              double step_size, double eps, bool targeted, double lower,
                              double upper) {
  NormStepParams p = pack_step<NormStepParams>(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                               step_size, eps, targeted, lower, upper);
  check_batch_outermost(x_adv, "x_adv", "a norm per sample");
  p.batch = x_adv.numel() ? x_adv.size(0) : 0;
  p.sample_numel = p.batch ? x_adv.numel() / p.batch : 0;
  return p;
}

void pgd_l2_step_(Tensor x_adv, const Tensor grad, const Tensor x,
                  std::optional<Tensor> step_size_per_sample, std::optional<Tensor> eps_per_sample,
                  double step_size, double eps, bool targeted, double lower, double upper) {
  const NormStepParams p = pack_norm_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                          step_size, eps, targeted, lower, upper);
  const Dtype dtype = dtype_tag(grad);
  run(
      x_adv, [&](auto stream) { cuda::launch_pgd_l2_step(p, dtype, stream); }, p.batch,
      sample_grain(p.sample_numel),
      [&](auto begin, auto end) { cpu::pgd_l2_step(p, dtype, begin, end); });
}

NormStepParams pack_mifgsm_step(Tensor& x_adv,       // [B, ...] float32, written
                                Tensor& momentum,    // [B, ...] float32, written
                                const Tensor& grad,  // [B, ...]
                                const Tensor& x,     // [B, ...] float32
                                const std::optional<Tensor>& step_size_per_sample,  // [B]
                                const std::optional<Tensor>& eps_per_sample,        // [B]
                                double step_size, double eps, double decay, bool targeted,
                                double lower, double upper, int64_t levels) {
  NormStepParams p = pack_norm_step(x_adv, grad, x, step_size_per_sample, eps_per_sample, step_size,
                                    eps, targeted, lower, upper);
  check_dtype(momentum, "momentum", ScalarType::Float, "float32");
  check_like(momentum, "momentum", x_adv, "x_adv");
  check_same_layout(momentum, "momentum", x_adv, "x_adv");
  check_apart(momentum, "momentum", x_adv, "x_adv");
  check_apart(momentum, "momentum", x, "x");
  check_apart(momentum, "momentum", grad, "grad");
  if (step_size_per_sample) check_apart(momentum, "momentum", *step_size_per_sample, "step_size");
  if (eps_per_sample) check_apart(momentum, "momentum", *eps_per_sample, "eps");
  p.momentum = static_cast<float*>(momentum.data_ptr());
  p.decay = float(decay);
  p.levels = checked_levels(levels);
  return p;
}

void mifgsm_step_(Tensor x_adv, Tensor momentum, const Tensor grad, const Tensor x,
                  std::optional<Tensor> step_size_per_sample, std::optional<Tensor> eps_per_sample,
                  double step_size, double eps, double decay, bool targeted, double lower,
                  double upper, int64_t levels) {
  const NormStepParams p =
      pack_mifgsm_step(x_adv, momentum, grad, x, step_size_per_sample, eps_per_sample, step_size,
                       eps, decay, targeted, lower, upper, levels);
  const Dtype dtype = dtype_tag(grad);
  run(
      x_adv, [&](auto stream) { cuda::launch_mifgsm_step(p, dtype, stream); }, p.batch,
      sample_grain(p.sample_numel),
      [&](auto begin, auto end) { cpu::mifgsm_step(p, dtype, begin, end); });
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) {
  m.impl("pgd_l2_step_", TORCH_BOX(&ard::pgd_l2_step_));
  m.impl("mifgsm_step_", TORCH_BOX(&ard::mifgsm_step_));
}
