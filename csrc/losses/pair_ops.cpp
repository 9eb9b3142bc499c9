#include "losses/loss_checks.h"
#include "losses/pair.h"

namespace ard {
namespace {

// As the schema has them.
struct PairInputs {
  const Tensor& adv;                    // [B, C]
  const Tensor& clean;                  // [B, C]
  const Tensor& labels;                 // [B] int64
  const std::optional<Tensor>& weight;  // [B] float
  bool mart;
  double kl_weight, ce_weight, kl_grad_weight, ce_grad_weight;
};

struct PairOutputs {
  Tensor loss_rows, grad_adv, grad_clean;
};

PairLossParams pack_pair_loss(const PairInputs& in, bool with_grad, PairOutputs& out) {
  const Tensor& adv = in.adv;
  const char* const name = "adv_logits";
  check_float_dtype(adv, name);
  check_logits(adv, name, adv, name);
  check_logits(in.clean, "clean_logits", adv, name);
  const int64_t least = in.mart ? 2 : 1;
  ARD_CHECK(adv.size(1) >= least, name, " must have at least ", least, " classes, got shape ",
            shape_of(adv));
  check_per_sample(in.labels, "labels", adv, ScalarType::Long, "int64", name);
  check_per_sample(in.weight, "weight", adv, ScalarType::Float, "float32", name);
  out.loss_rows = new_rows(adv);
  out.grad_adv = new_gradient(adv, with_grad);
  out.grad_clean = new_gradient(adv, with_grad);

  PairLossParams p{};
  p.adv = adv.data_ptr();
  p.clean = in.clean.data_ptr();
  p.labels = static_cast<const int64_t*>(in.labels.data_ptr());
  p.weight = data_or_null<float>(in.weight);
  p.loss_rows = static_cast<float*>(out.loss_rows.data_ptr());
  p.grad_adv = with_grad ? out.grad_adv.data_ptr() : nullptr;
  p.grad_clean = with_grad ? out.grad_clean.data_ptr() : nullptr;
  p.batch = adv.size(0);
  p.classes = adv.size(1);
  p.adv_stride = adv.stride(0);
  p.clean_stride = in.clean.stride(0);
  p.kl_weight = float(in.kl_weight);
  p.ce_weight = float(in.ce_weight);
  p.kl_grad_weight = float(in.kl_grad_weight);
  p.ce_grad_weight = float(in.ce_grad_weight);
  p.mart = in.mart;
  return p;
}

std::tuple<Tensor, Tensor, Tensor> pair_loss(const Tensor adv, const Tensor clean,
                                             const Tensor labels, std::optional<Tensor> weight,
                                             bool mart, double kl_weight, double ce_weight,
                                             double kl_grad_weight, double ce_grad_weight,
                                             bool reduce, bool with_grad) {
  PairOutputs out;
  const PairLossParams p = pack_pair_loss(
      {adv, clean, labels, weight, mart, kl_weight, ce_weight, kl_grad_weight, ce_grad_weight},
      with_grad, out);
  if (!on_gpu(adv)) check_in_range(p.labels, "labels", p.batch, p.classes);
  const Dtype dtype = dtype_tag(adv);
  const Tensor loss = run_loss(
      adv, out.loss_rows, reduce,
      [&](float* total, auto stream) { cuda::launch_pair_loss(p, dtype, total, stream); },
      [&](auto begin, auto end) { cpu::pair_loss(p, dtype, begin, end); });
  return {loss, out.grad_adv, out.grad_clean};
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) { m.impl("pair_loss", TORCH_BOX(&ard::pair_loss)); }
