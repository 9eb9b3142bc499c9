// Auto-PGD (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
// diverse parameter-free attacks", ICML 2020, algorithm 1): what a sample decides once its loss is
// known, and one pixel of its L-infinity step. Rules and constants are those of the authors' code.
#pragma once

#include "core/params.h"
#include "core/pgd_math.h"

namespace ard {

// What a sample remembers between iterations: the rows of `state`, in this order.
struct ApgdRecord {
  float step_size;
  float loss_best;
  float loss_prev;           // of the iterate before; 0 at the start, as the authors have it
  float increases;           // iterations since the last checkpoint whose loss was above loss_prev
  float loss_best_at_check;  // loss_best at the last checkpoint
  float reduced_at_check;    // 1 where that checkpoint halved the step (and at the start), else 0
  float fooled;              // 1 once an iterate was misclassified, else 0
};

ARD_HD ApgdRecord apgd_load(const float* state, int64_t batch, int64_t sample) {
  const float* s = state + sample;
  return ApgdRecord{s[0],         s[batch],     s[2 * batch], s[3 * batch],
                    s[4 * batch], s[5 * batch], s[6 * batch]};
}

ARD_HD void apgd_store(float* state, int64_t batch, int64_t sample, const ApgdRecord& record) {
  float* s = state + sample;
  s[0] = record.step_size;
  s[batch] = record.loss_best;
  s[2 * batch] = record.loss_prev;
  s[3 * batch] = record.increases;
  s[4 * batch] = record.loss_best_at_check;
  s[5 * batch] = record.reduced_at_check;
  s[6 * batch] = record.fooled;
}

struct ApgdDecision {
  ApgdRecord record;  // after this iterate
  bool improved;      // x_best, grad_best <- x_adv, grad
  bool keep_fooled;   // x_fooled <- x_adv
  bool from_best;  // x_adv, grad <- x_best, grad_best: a restart, unless x_adv is the best itself
};

ARD_HD ApgdDecision apgd_decide(const ApgdParams& p, int64_t sample) {
  const float loss = p.loss_rows[sample];
  const bool wrong = !p.correct[sample];
  if (p.first) {
    const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
    const ApgdRecord start{2.0f * eps, loss, 0.0f, 0.0f, loss, 1.0f, wrong ? 1.0f : 0.0f};
    return ApgdDecision{start, true, true, false};
  }
  ApgdRecord r = apgd_load(p.state, p.batch, sample);
  // A NaN is never better, and anything else is better than a NaN.
  const bool improved = loss > r.loss_best || (r.loss_best != r.loss_best && loss == loss);
  if (improved) r.loss_best = loss;
  if (loss > r.loss_prev) r.increases += 1.0f;
  r.loss_prev = loss;
  if (wrong) r.fooled = 1.0f;
  bool halve = false;
  if (p.checkpoint) {
    // Condition 1: too few steps raised the loss. Condition 2: the last checkpoint left the step as
    // it was, and no better loss was found since.
    halve = r.increases <= p.most_increases ||
            (r.reduced_at_check == 0.0f && r.loss_best_at_check >= r.loss_best);
    if (halve) r.step_size *= 0.5f;
    r.reduced_at_check = halve ? 1.0f : 0.0f;
    r.loss_best_at_check = r.loss_best;
    r.increases = 0.0f;
  }
  return ApgdDecision{r, improved, wrong, halve && !improved};
}

// The iterate after `current` before its last projection: `stepped` (the projected gradient step)
// and the move before this one, weighted by momentum and 1 - momentum.
ARD_HD float apgd_mix(float current, float stepped, float previous, float momentum,
                      float one_minus_momentum) {
  const float ahead = add_rn(current, mul_rn(add_rn(stepped, -current), momentum));
  return add_rn(ahead, mul_rn(add_rn(current, -previous), one_minus_momentum));
}

// One pixel of the L-infinity step, bit for bit as the authors compute it.
ARD_HD float apgd_linf_update(float current, float grad, float x, float previous, float step_size,
                              float eps, float momentum, float one_minus_momentum, float lower,
                              float upper) {
  const float stepped = pgd_linf_update(current, grad, x, step_size, eps, lower, upper);
  const float mixed = apgd_mix(current, stepped, previous, momentum, one_minus_momentum);
  return linf_project(mixed, x, eps, lower, upper);
}

// The gradient as the L2 step counts it: nothing for a NaN, the largest float for an infinity.
ARD_HD float l2_clean(float grad) {
  const float number = grad == grad ? grad : 0.0f;
  return min_or_second(max_or_second(number, -3.40282347e38f), 3.40282347e38f);
}

// A power of two that brings the largest |gradient| near 1, so that no square overflows and none
// that counts underflows.
ARD_HD float l2_scale(float largest) {
  const int32_t biased = 253 - int32_t(float_to_bits(largest) >> 23);
  return bits_to_float(uint32_t(biased < 1 ? 1 : biased) << 23);
}

// What the scaled gradient is multiplied by to have the length of the step: 0 for no gradient.
ARD_HD float l2_step_factor(float step_size, double scaled_norm_squared) {
  return scaled_norm_squared > 0.0 ? float(double(step_size) / sqrt_f64(scaled_norm_squared))
                                   : 0.0f;
}

// What a perturbation is multiplied by to lie in the ball: rounded down, so that it does.
ARD_HD float l2_shrink(float eps, double norm_squared) {
  if (norm_squared <= double(eps) * double(eps)) return 1.0f;
  const double ratio = double(eps) / sqrt_f64(norm_squared);
  const float rounded = float(ratio);
  const bool above = double(rounded) > ratio;  // then it is positive
  return above ? bits_to_float(float_to_bits(rounded) - 1u) : rounded;
}

// One pixel of the L2 step, in three parts between which the sample's norm is taken: the
// perturbation after the gradient step; the perturbation after the momentum, from that step
// projected; and the next iterate.
ARD_HD float apgd_l2_stepped(float current, float grad, float x, float scale, float factor) {
  const float direction = mul_rn(mul_rn(l2_clean(grad), scale), factor);
  return add_rn(add_rn(current, direction), -x);
}

ARD_HD float apgd_l2_projected(float perturbation, float x, float shrink, float lower,
                               float upper) {
  return clamp_nan(add_rn(x, mul_rn(perturbation, shrink)), lower, upper);
}

ARD_HD float apgd_l2_mixed(float stepped, float shrink, float current, float x, float previous,
                           float momentum, float one_minus_momentum, float lower, float upper) {
  const float projected = apgd_l2_projected(stepped, x, shrink, lower, upper);
  return add_rn(apgd_mix(current, projected, previous, momentum, one_minus_momentum), -x);
}

}  // namespace ard
