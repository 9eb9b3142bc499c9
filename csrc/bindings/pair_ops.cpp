// The losses of adversarial and clean logits on CPU tensors.
#include <algorithm>

#include "bindings/loss_rows_cpu.h"
#include "bindings/pair_pack.h"
#include "cpu/pair_loss.h"

namespace ard {
namespace {

std::tuple<Tensor, Tensor, Tensor> pair_loss_cpu(const Tensor adv, const Tensor clean,
                                                 const Tensor labels, std::optional<Tensor> weight,
                                                 bool mart, double kl_weight, double ce_weight,
                                                 double kl_grad_weight, double ce_grad_weight,
                                                 bool reduce, bool with_grad) {
  PairOutputs out;
  const PairLossParams p = pack_pair_loss(
      {adv, clean, labels, weight, mart, kl_weight, ce_weight, kl_grad_weight, ce_grad_weight},
      with_grad, out);
  check_labels_in_range(p.labels, p.batch, p.classes);
  const Dtype dtype = dtype_tag(adv);
  const int64_t grain = std::max<int64_t>(1, (1 << 12) / p.classes);
  torch::stable::parallel_for(
      0, p.batch, grain, [&](int64_t begin, int64_t end) { cpu::pair_loss(p, dtype, begin, end); });
  return {reduce ? sum_of_rows(out.loss_rows) : out.loss_rows, out.grad_adv, out.grad_clean};
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) { m.impl("pair_loss", TORCH_BOX(&ard::pair_loss_cpu)); }
