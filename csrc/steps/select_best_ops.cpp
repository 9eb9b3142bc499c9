#include "common/operators.h"
#include "steps/select_best.h"
#include "steps/step_checks.h"

namespace ard {
namespace {

SelectParams pack_select_best(Tensor& best,             // [B, ...] float32, written
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

void select_best_(Tensor best, const Tensor candidate, const Tensor best_loss, const Tensor loss,
                  Tensor best_loss_out, bool lower) {
  const SelectParams p = pack_select_best(best, candidate, best_loss, loss, best_loss_out, lower);
  run(
      best, [&](auto stream) { cuda::launch_select_best(p, stream); }, p.batch,
      sample_grain(p.sample_numel), [&](auto begin, auto end) { cpu::select_best(p, begin, end); });
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) { m.impl("select_best_", TORCH_BOX(&ard::select_best_)); }
