// attack_gradient: from checked tensors to its params struct, the same for CPU and CUDA.
#pragma once

#include <array>

#include "bindings/checks.h"
#include "core/attack_gradient_params.h"

namespace ard {

struct AttackGradientOutputs {
  Tensor grad, loss_rows, correct, grad_scale;
};

inline void check_classes(const Tensor& t, const char* name, const Tensor& logits) {
  check_given(t, name);
  ARD_CHECK(t.dim() == 1 && t.size(0) == logits.size(0), name, " must have shape [", logits.size(0),
            "], one class a row of logits, got ", shape_of(t));
  check_dtype(t, name, ScalarType::Long, "int64");
  check_device(t, name, logits, "logits");
  ARD_CHECK(t.size(0) < 2 || t.stride(0) == 1, name, " must be contiguous");
}

inline AttackGradientParams pack_attack_gradient(const Tensor& logits,  // [B, C]
                                                 const Tensor& labels,  // [B] int64
                                                 const std::optional<Tensor>& target_classes,
                                                 int64_t loss, double kappa, bool with_rows,
                                                 bool scaled, AttackGradientOutputs& out) {
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
  const std::array<int64_t, 2> full{batch, classes};
  const std::array<int64_t, 1> rows{with_rows ? batch : 0};
  const std::array<int64_t, 1> scales{scaled ? batch : 0};
  out.grad = torch::stable::new_empty(logits, {full.data(), full.size()});
  out.loss_rows = torch::stable::new_empty(logits, {rows.data(), rows.size()}, ScalarType::Float);
  out.correct = torch::stable::new_empty(logits, {rows.data(), rows.size()}, ScalarType::Bool);
  out.grad_scale =
      torch::stable::new_empty(logits, {scales.data(), scales.size()}, ScalarType::Float);

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

}  // namespace ard
