// The steps along a normalised gradient and the selection of the best iterate: from checked tensors
// to their params structs, the same for CPU and CUDA.
#pragma once

#include "bindings/step_pack.h"
#include "core/norm_params.h"

namespace ard {

inline NormStepParams pack_norm_step(Tensor& x_adv,       // [B, ...] float32, written
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

inline NormStepParams pack_mifgsm_step(Tensor& x_adv,       // [B, ...] float32, written
                                       Tensor& momentum,    // [B, ...] float32, written
                                       const Tensor& grad,  // [B, ...]
                                       const Tensor& x,     // [B, ...] float32
                                       const std::optional<Tensor>& step_size_per_sample,  // [B]
                                       const std::optional<Tensor>& eps_per_sample,        // [B]
                                       double step_size, double eps, double decay, bool targeted,
                                       double lower, double upper) {
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
  return p;
}

inline SelectParams pack_select_best(Tensor& best,             // [B, ...] float32, written
                                     const Tensor& candidate,  // [B, ...] float32
                                     const Tensor& best_loss,  // [B] float32
                                     const Tensor& loss,       // [B] float32
                                     Tensor& best_loss_out,    // [B] float32, written
                                     bool lower) {
  check_dtype(best, "best", ScalarType::Float, "float32");
  check_dtype(candidate, "candidate", ScalarType::Float, "float32");
  check_like(candidate, "candidate", best, "best");
  check_dense(best, "best");
  check_batch_outermost(best, "best", "a choice per sample");
  check_same_layout(candidate, "candidate", best, "best");
  check_no_partial_overlap(best, "best", candidate, "candidate");
  check_per_sample(best_loss, "best_loss", best, ScalarType::Float, "float32", "best");
  check_per_sample(loss, "loss", best, ScalarType::Float, "float32", "best");
  check_per_sample(best_loss_out, "best_loss_out", best, ScalarType::Float, "float32", "best");
  check_apart(best_loss_out, "best_loss_out", best_loss, "best_loss");
  check_apart(best_loss_out, "best_loss_out", loss, "loss");
  check_apart(best_loss_out, "best_loss_out", best, "best");
  check_apart(best_loss_out, "best_loss_out", candidate, "candidate");
  check_apart(best, "best", best_loss, "best_loss");
  check_apart(best, "best", loss, "loss");

  SelectParams p{};
  p.best = static_cast<float*>(best.data_ptr());
  p.candidate = static_cast<const float*>(candidate.data_ptr());
  p.best_loss = static_cast<const float*>(best_loss.data_ptr());
  p.loss = static_cast<const float*>(loss.data_ptr());
  p.best_loss_out = static_cast<float*>(best_loss_out.data_ptr());
  p.batch = best.size(0);
  p.sample_numel = best.numel() ? best.numel() / p.batch : 0;
  p.lower = lower;
  return p;
}

}  // namespace ard
