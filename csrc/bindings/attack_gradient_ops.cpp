// attack_gradient on CPU tensors.
#include <algorithm>

#include "bindings/attack_gradient_pack.h"
#include "cpu/attack_gradient.h"

namespace ard {
namespace {

void check_in_range(const int64_t* values, const char* name, const AttackGradientParams& p) {
  for (int64_t i = 0; values && i < p.batch; ++i) {
    ARD_CHECK(values[i] >= 0 && values[i] < p.classes, name, " must be in [0, ", p.classes,
              "), got ", values[i], " at position ", i);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attack_gradient_cpu(const Tensor logits,
                                                               const Tensor labels,
                                                               std::optional<Tensor> target_classes,
                                                               int64_t loss, double kappa,
                                                               bool with_rows, bool scaled) {
  AttackGradientOutputs out;
  const AttackGradientParams p =
      pack_attack_gradient(logits, labels, target_classes, loss, kappa, with_rows, scaled, out);
  check_in_range(p.labels, "labels", p);
  check_in_range(p.target_classes, "target_classes", p);
  const Dtype dtype = dtype_tag(logits);
  const int64_t grain = std::max<int64_t>(1, (1 << 13) / p.classes);
  torch::stable::parallel_for(0, p.batch, grain, [&](int64_t begin, int64_t end) {
    cpu::attack_gradient(p, dtype, begin, end);
  });
  return {out.grad, out.loss_rows, out.correct, out.grad_scale};
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("attack_gradient", TORCH_BOX(&ard::attack_gradient_cpu));
}
