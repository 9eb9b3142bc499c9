#include "common/operators.h"
#include "steps/pgd_linf.h"
#include "steps/step_checks.h"

namespace ard {
namespace {

PgdLinfParams pack_pgd_linf_step(Tensor& x_adv,       // [B, ...] float32, written
                                 const Tensor& grad,  // [B, ...]
                                 const Tensor& x,     // [B, ...] float32
                                 const std::optional<Tensor>& step_size_per_sample,  // [B]
                                 const std::optional<Tensor>& eps_per_sample,        // [B]
                                 double step_size, double eps, bool targeted, double lower,
                                 double upper, int64_t levels) {
  PgdLinfParams p = pack_step<PgdLinfParams>(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                             step_size, eps, targeted, lower, upper);
  if (step_size_per_sample || eps_per_sample) {
    check_batch_outermost(x_adv, "x_adv", "a per-sample eps or step_size");
  }
  p.numel = x_adv.numel();
  p.levels = checked_levels(levels);
  p.sample_numel = p.numel && x_adv.dim() ? p.numel / x_adv.size(0) : 0;
  return p;
}

void pgd_linf_step_(Tensor x_adv, const Tensor grad, const Tensor x, double step_size, double eps,
                    bool targeted, double lower, double upper, int64_t levels,
                    std::optional<Tensor> step_size_per_sample,
                    std::optional<Tensor> eps_per_sample) {
  const PgdLinfParams p = pack_pgd_linf_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                             step_size, eps, targeted, lower, upper, levels);
  const Dtype dtype = dtype_tag(grad);
  run(
      x_adv, [&](auto stream) { cuda::launch_pgd_linf_step(p, dtype, stream); }, p.numel, 1 << 15,
      [&](auto begin, auto end) { cpu::pgd_linf_step(p, dtype, begin, end); });
}

RandomStartParams pack_random_start(const Tensor& x,                              // [B, ...]
                                    const std::optional<Tensor>& eps_per_sample,  // [B]
                                    double eps, const Tensor& seed,               // [1] int64
                                    const std::optional<Tensor>& sample_ids,      // [B] int64
                                    bool normal, double std, bool clamp, double lower, double upper,
                                    int64_t levels) {
  check_dtype(x, "x", ScalarType::Float, "float32");
  ARD_CHECK(x.dim() >= 1, "x must have a batch dimension, got a scalar");
  check_dense(x, "x");
  check_batch_outermost(x, "x", "the random start");
  check_per_sample(eps_per_sample, "eps", x, ScalarType::Float, "float32");
  check_per_sample(sample_ids, "sample_ids", x, ScalarType::Long, "int64");
  check_dtype(seed, "seed", ScalarType::Long, "int64");
  ARD_CHECK(seed.numel() == 1, "seed must have one element, got shape ", shape_of(seed));
  check_device(seed, "seed", x, "x");

  RandomStartParams p{};
  p.x = static_cast<const float*>(x.data_ptr());
  p.eps_per_sample = data_or_null<float>(eps_per_sample);
  p.seed = static_cast<const int64_t*>(seed.data_ptr());
  p.sample_ids = data_or_null<int64_t>(sample_ids);
  p.batch = x.size(0);
  p.sample_numel = x.numel() ? x.numel() / x.size(0) : 0;
  p.channels = x.numel() ? innermost_channels(x, "x") : 1;
  p.eps = float(eps);
  p.std = float(std);
  p.lower = clamp ? float(lower) : -INFINITY;
  p.upper = clamp ? float(upper) : INFINITY;
  p.levels = checked_levels(levels);
  p.normal = normal;
  return p;
}

Tensor random_start(const Tensor x, std::optional<Tensor> eps_per_sample, double eps,
                    const Tensor seed, std::optional<Tensor> sample_ids, bool normal, double std,
                    bool clamp, double lower, double upper, int64_t levels) {
  RandomStartParams p = pack_random_start(x, eps_per_sample, eps, seed, sample_ids, normal, std,
                                          clamp, lower, upper, levels);
  Tensor out = empty_with_layout_of(x);
  p.out = static_cast<float*>(out.data_ptr());
  run(
      x, [&](auto stream) { cuda::launch_random_start(p, stream); },
      p.batch * ((p.sample_numel + 3) / 4), 1 << 12,
      [&](auto begin, auto end) { cpu::random_start(p, begin, end); });
  return out;
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) {
  m.impl("pgd_linf_step_", TORCH_BOX(&ard::pgd_linf_step_));
  m.impl("random_start", TORCH_BOX(&ard::random_start));
}
