#include <algorithm>

#include "apgd/apgd.h"
#include "common/operators.h"
#include "steps/step_checks.h"

namespace ard {
namespace {

constexpr int64_t kApgdFields = sizeof(ApgdRecord) / sizeof(float);

void check_apgd_state(const Tensor& t, const char* name, const Tensor& x) {
  check_given(t, name);
  ARD_CHECK(t.dim() == 2 && t.size(0) == kApgdFields && t.size(1) == x.size(0), name,
            " must have shape [", kApgdFields, ", ", x.size(0), "], got ", shape_of(t));
  check_dtype(t, name, ScalarType::Float, "float32");
  check_device(t, name, x, "x_adv");
  ARD_CHECK(t.numel() == 0 || ((t.size(1) == 1 || t.stride(1) == 1) && t.stride(0) == t.size(1)),
            name, " must be contiguous");
}

ApgdParams pack_apgd_step(Tensor& x_adv,        // [B, ...] float32, written on a restart
                          Tensor& x_prev,       // [B, ...] float32, written
                          Tensor& x_best,       // [B, ...] float32, written
                          Tensor& grad_best,    // [B, ...], written
                          Tensor& x_fooled,     // [B, ...] float32, written
                          const Tensor& state,  // [7, B] float32
                          Tensor& state_out,    // [7, B] float32, written
                          const std::optional<Tensor>& grad,            // [B, ...]
                          const Tensor& x,                              // [B, ...] float32
                          const Tensor& loss_rows,                      // [B] float32
                          const Tensor& correct,                        // [B] bool
                          const std::optional<Tensor>& eps_per_sample,  // [B] float32
                          double eps, bool first, int64_t window, double rho, double momentum,
                          double lower, double upper, int64_t levels) {
  check_dtype(x_adv, "x_adv", ScalarType::Float, "float32 (iterates stay in full precision)");
  check_dense(x_adv, "x_adv");
  check_batch_outermost(x_adv, "x_adv", "Auto-PGD, which decides sample by sample");
  const auto check_image = [&](const Tensor& t, const char* name) {
    check_like(t, name, x_adv, "x_adv");
    check_same_layout(t, name, x_adv, "x_adv");
  };
  const auto check_pixels = [&](const Tensor& t, const char* name) {
    check_dtype(t, name, ScalarType::Float, "float32");
    check_image(t, name);
  };
  check_pixels(x_prev, "x_prev");
  check_pixels(x_best, "x_best");
  check_pixels(x_fooled, "x_fooled");
  check_pixels(x, "x");
  check_float_dtype(grad_best, "grad_best");
  check_image(grad_best, "grad_best");
  if (grad) {
    check_float_dtype(*grad, "grad");
    check_image(*grad, "grad");
    ARD_CHECK(grad->scalar_type() == grad_best.scalar_type(), "grad must have the dtype of ",
              "grad_best (", dtype_of(grad_best), "), got ", dtype_of(*grad));
  }
  check_apgd_state(state, "state", x_adv);
  check_apgd_state(state_out, "state_out", x_adv);
  check_per_sample(loss_rows, "loss_rows", x_adv, ScalarType::Float, "float32");
  check_per_sample(correct, "correct", x_adv, ScalarType::Bool, "bool");
  check_per_sample(eps_per_sample, "eps", x_adv, ScalarType::Float, "float32");
  ARD_CHECK(window >= 0, "window must be at least 0, got ", window);

  struct Named {
    const Tensor* tensor;
    const char* name;
  };
  // The first six are written. Blocks of the kernels read and write without an order among them, so
  // nothing written may be read or written under another name.
  const Named all[] = {{&x_adv, "x_adv"},
                       {&x_prev, "x_prev"},
                       {&x_best, "x_best"},
                       {&grad_best, "grad_best"},
                       {&x_fooled, "x_fooled"},
                       {&state_out, "state_out"},
                       {&state, "state"},
                       {grad ? &*grad : nullptr, "grad"},
                       {&x, "x"},
                       {&loss_rows, "loss_rows"},
                       {&correct, "correct"},
                       {eps_per_sample ? &*eps_per_sample : nullptr, "eps"}};
  for (int i = 0; i < 6; ++i) {
    for (int j = i + 1; j < int(std::size(all)); ++j) {
      if (all[j].tensor) check_apart(*all[i].tensor, all[i].name, *all[j].tensor, all[j].name);
    }
  }

  ApgdParams p{};
  p.x_adv = static_cast<float*>(x_adv.data_ptr());
  p.x_prev = static_cast<float*>(x_prev.data_ptr());
  p.x_best = static_cast<float*>(x_best.data_ptr());
  p.grad_best = grad_best.data_ptr();
  p.x_fooled = static_cast<float*>(x_fooled.data_ptr());
  p.state = static_cast<const float*>(state.data_ptr());
  p.state_out = static_cast<float*>(state_out.data_ptr());
  p.grad = grad ? grad->data_ptr() : nullptr;
  p.x = static_cast<const float*>(x.data_ptr());
  p.loss_rows = static_cast<const float*>(loss_rows.data_ptr());
  p.correct = static_cast<const bool*>(correct.data_ptr());
  p.eps_per_sample = data_or_null<float>(eps_per_sample);
  p.batch = x_adv.size(0);
  p.sample_numel = x_adv.numel() ? x_adv.numel() / p.batch : 0;
  p.eps = float(eps);
  p.most_increases = float(rho * double(window));
  p.momentum = float(first ? 1.0 : momentum);
  p.one_minus_momentum = float(first ? 0.0 : 1.0 - momentum);
  p.lower = float(lower);
  p.upper = float(upper);
  p.levels = checked_levels(levels);
  p.first = first;
  p.checkpoint = window > 0;
  return p;
}

void apgd_step_(Tensor x_adv, Tensor x_prev, Tensor x_best, Tensor grad_best, Tensor x_fooled,
                const Tensor state, Tensor state_out, std::optional<Tensor> grad, const Tensor x,
                const Tensor loss_rows, const Tensor correct, std::optional<Tensor> eps_per_sample,
                double eps, bool l2, bool first, int64_t window, double rho, double momentum,
                double lower, double upper, int64_t levels) {
  const ApgdParams p = pack_apgd_step(x_adv, x_prev, x_best, grad_best, x_fooled, state, state_out,
                                      grad, x, loss_rows, correct, eps_per_sample, eps, first,
                                      window, rho, momentum, lower, upper, levels);
  ARD_CHECK(levels == 0 || !l2, "levels must be 0 for l2, got ", levels);
  const Dtype dtype = dtype_tag(grad_best);
  const int64_t pieces = l2 ? 1 : cpu::apgd_linf_pieces(p.sample_numel);
  const int64_t grain = std::max<int64_t>(1, (1 << 15) * pieces / (p.sample_numel + 1));
  run(
      x_adv,
      [&](auto stream) {
        if (!grad) return cuda::launch_apgd_finish(p, stream);
        if (l2) return cuda::launch_apgd_l2_step(p, dtype, stream);
        cuda::launch_apgd_linf_step(p, dtype, stream);
      },
      p.batch * pieces, grain,
      [&](auto begin, auto end) {
        l2 ? cpu::apgd_l2_step(p, dtype, begin, end) : cpu::apgd_linf_step(p, dtype, begin, end);
      });
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) { m.impl("apgd_step_", TORCH_BOX(&ard::apgd_step_)); }
