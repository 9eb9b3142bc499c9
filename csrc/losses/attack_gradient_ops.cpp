#include "losses/attack_gradient.h"
#include "losses/loss_checks.h"

namespace ard {
namespace {

struct AttackGradientOutputs {
  Tensor grad, loss_rows, correct, grad_scale;
};

void check_classes(const Tensor& t, const char* name, const Tensor& logits) {
  check_vector(t, name, logits.size(0), "one class a row of logits", ScalarType::Long, "int64",
               logits, "logits");
}

AttackGradientParams pack_attack_gradient(const Tensor& logits,  // [B, C]
                                          const Tensor& labels,  // [B] int64
                                          const std::optional<Tensor>& target_classes, int64_t loss,
                                          double kappa, bool with_rows, bool scaled,
                                          AttackGradientOutputs& out) {
  constexpr int64_t kLeastClasses[] = {1, 2, 3, 4};  // of ce, margin, dlr, dlr_targeted
  ARD_CHECK(loss >= 0 && loss <= 3,
            "loss must be 0 (ce), 1 (margin), 2 (dlr) or 3 "
            "(dlr_targeted), got ",
            loss);
  check_float_dtype(logits, "logits");
  ARD_CHECK(logits.dim() == 2 && logits.size(1) >= kLeastClasses[loss],
            "logits must have shape [B, C] with C >= ", kLeastClasses[loss], " for this loss, got ",
            shape_of(logits));
  ARD_CHECK(logits.size(1) <= 0x7fffffff - 32, "logits must have fewer than 2^31 classes, got ",
            logits.size(1));
  ARD_CHECK(logits.size(1) == 1 || logits.stride(1) == 1 || logits.numel() == 0,
            "logits must have their classes contiguous in memory");
  check_classes(labels, "labels", logits);
  ARD_CHECK(target_classes.has_value() == (loss == 3),
            "target_classes must be given for dlr_targeted and for no other loss");
  if (target_classes) check_classes(*target_classes, "target_classes", logits);

  const int64_t batch = logits.size(0), classes = logits.size(1);
  out.grad = new_gradient(logits, true);
  out.loss_rows = new_rows(logits, with_rows);
  out.correct = new_rows(logits, with_rows, ScalarType::Bool);
  out.grad_scale = new_rows(logits, scaled);

  AttackGradientParams p{};
  p.logits = logits.data_ptr();
  p.labels = static_cast<const int64_t*>(labels.data_ptr());
  p.target_classes = data_or_null<int64_t>(target_classes);
  p.grad = out.grad.data_ptr();
  p.loss_rows = with_rows ? static_cast<float*>(out.loss_rows.data_ptr()) : nullptr;
  p.correct = with_rows ? static_cast<bool*>(out.correct.data_ptr()) : nullptr;
  p.grad_scale = scaled ? static_cast<float*>(out.grad_scale.data_ptr()) : nullptr;
  p.batch = batch;
  p.classes = classes;
  p.logits_stride = logits.stride(0);
  p.loss = static_cast<AttackLoss>(loss);
  p.kappa = float(kappa);
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attack_gradient(const Tensor logits, const Tensor labels,
                                                           int64_t loss,
                                                           std::optional<Tensor> target_classes,
                                                           double kappa, bool with_rows,
                                                           bool scaled) {
  AttackGradientOutputs out;
  const AttackGradientParams p =
      pack_attack_gradient(logits, labels, target_classes, loss, kappa, with_rows, scaled, out);
  if (!on_gpu(logits)) {
    check_in_range(p.labels, "labels", p.batch, p.classes);
    check_in_range(p.target_classes, "target_classes", p.batch, p.classes);
  }
  const Dtype dtype = dtype_tag(logits);
  run(
      logits, [&](auto stream) { cuda::launch_attack_gradient(p, dtype, stream); }, p.batch,
      std::max<int64_t>(1, (1 << 13) / p.classes),
      [&](auto begin, auto end) { cpu::attack_gradient(p, dtype, begin, end); });
  return {out.grad, out.loss_rows, out.correct, out.grad_scale};
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) { m.impl("attack_gradient", TORCH_BOX(&ard::attack_gradient)); }
