// Params of the losses of adversarial and clean logits (see params.h).
#pragma once

#include "core/config.h"

namespace ard {

// TRADES: loss_row = weight * (ce_weight * CE(clean) + kl_weight * KL(clean || adv))
// MART:   loss_row = weight * (ce_weight * BCE(adv) + kl_weight * KL(clean || adv) * (1 - q_y))
struct PairLossParams {
  const void* adv;        // [B, C] logits on the adversarial image
  const void* clean;      // [B, C] logits on the clean image
  const int64_t* labels;  // [B]
  const float* weight;    // [B], or null for 1
  float* loss_rows;       // [B]
  void* grad_adv;         // [B, C] contiguous, or null, and then grad_clean is null too
  void* grad_clean;       // [B, C] contiguous, or null
  int64_t batch;
  int64_t classes;
  int64_t adv_stride, clean_stride;  // elements between rows
  float kl_weight, ce_weight;
  float kl_grad_weight, ce_grad_weight;  // the gradients are those of the loss with these weights
  bool mart;
};

}  // namespace ard
