// Auto-PGD (Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
// diverse parameter-free attacks", ICML 2020, algorithm 1): what a sample decides once its loss is
// known, and one pixel of its L-infinity step. Rules and constants are those of the authors' code.
#pragma once

#include "steps/normed.h"
#include "steps/pgd_linf.h"
#include "steps/select_best.h"

namespace ard {

// B batch, E elements per sample; samples follow one another in memory.
struct ApgdParams {
  float* x_adv;                 // [B, E] the iterate just evaluated; overwritten on a restart
  float* x_prev;                // [B, E] the iterate before it; the next one is written here
  float* x_best;                // [B, E] highest loss
  void* grad_best;              // [B, E] gradient there
  float* x_fooled;              // [B, E] last misclassified iterate, or the start
  const float* state;           // [7, B], see ApgdRecord
  float* state_out;             // [7, B]
  const void* grad;             // [B, E] float, f16 or bf16, or null: no step
  const float* x;               // [B, E]
  const float* loss_rows;       // [B]
  const bool* correct;          // [B]
  const float* eps_per_sample;  // [B] or null
  int64_t batch;
  int64_t sample_numel;      // E
  float eps;                 // used when eps_per_sample is null
  float most_increases;      // at a checkpoint: halve the step if no more steps raised the loss
  float momentum;            // weight of the gradient step
  float one_minus_momentum;  // weight of the move before
  float lower, upper;        // pixel bounds
  Levels levels;             // of the iterates; L-infinity only
  bool first;                // this is the start: nothing is remembered yet
  bool checkpoint;
};

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
  const bool improved = loss_wins(loss, r.loss_best, false);
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

// Between levels, a step of less than one would not move.
ARD_HD float apgd_step_size(const ApgdParams& p, const ApgdDecision& d) {
  const float step = d.record.step_size;
  return p.levels.count > 0.0f ? max_or_second(level_value(1.0f, p.levels), step) : step;
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

// One pixel of the L2 step before its last projection, relative to x: the gradient step of
// normed.h, which ends in the ball, and the momentum.
ARD_HD float apgd_l2_delta(float current, float grad, float x, float previous, const L2Step& by,
                           float momentum, float one_minus_momentum, float lower, float upper) {
  const float stepped = l2_update(current, grad, x, by, lower, upper);
  return add_rn(apgd_mix(current, stepped, previous, momentum, one_minus_momentum), -x);
}

ARD_HD float apgd_l2_finish(float delta, float x, float shrink, float lower, float upper) {
  return clamp_nan(add_towards(x, mul_rn(shrink, delta)), lower, upper);
}

namespace cpu {

// Elements of a piece: its tensors stay in the first-level cache between the copies and the step.
constexpr int64_t kApgdPiece = 1024;

inline int64_t apgd_linf_pieces(int64_t sample_numel) {
  const int64_t pieces = (sample_numel + kApgdPiece - 1) / kApgdPiece;
  return pieces ? pieces : 1;  // an empty sample has its record still
}

// Pieces [begin, end): every sample has apgd_linf_pieces of them, which any threads may do in any
// order; of the L2 step, a piece is a sample.
void apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end);
void apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

void launch_apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, Stream stream);
void launch_apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, Stream stream);
// Without a gradient: what both norms do after the last step.
void launch_apgd_finish(const ApgdParams& p, Stream stream);

}  // namespace cuda

}  // namespace ard
