// The losses of a network's adversarial and clean logits, from the rows of rows.h at
// temperature 1: the student's is the adversarial row, the teacher's the clean one. With p and q
// their softmax, d the difference of logits and m = sum q * d,
//
//   TRADES (Zhang et al. 2019)  CE(clean, y) + beta * KL(q || p)
//   MART (Wang et al. 2020)     CE(adv, y) - log(1.0001 - p_k) + beta * KL(q || p) * (1 - q_y)
//
// k being the most likely class but y. The clean row's cross-entropy and q come from the weights
// that the KL needs anyway.
#pragma once

#include "common/half.h"
#include "losses/rows.h"

namespace ard {

// B batch, C classes.
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

// The two terms of a row's loss, or what these are multiplied by in its gradient.
struct PairTerms {
  float kl, ce;
};

// Of one class.
struct PairGrads {
  float adv, clean;
};

// The gradient to one clean logit. kl_grad: kd_teacher_grad of the class.
ARD_HD float trades_clean_grad(const CeRow& clean, float clean_weight, bool is_label, float kl_grad,
                               PairTerms weight) {
  return weight.ce * ce_grad_of_weight(clean, clean_weight, is_label) + weight.kl * kl_grad;
}

// What MART's terms of one row share.
struct MartRow {
  CeRow adv, clean;
  float margin;          // -log(1.0001 - p_k)
  float slope;           // p_k / (1.0001 - p_k)
  float q_label, doubt;  // q_y, 1 - q_y
};

// label_weight: e^(z_y - z_max) of the clean row.
ARD_HD MartRow mart_row(const CeRow& adv, float rival_logit, const CeRow& clean,
                        float label_weight) {
  MartRow row;
  row.adv = adv;
  row.clean = clean;
  row.q_label = label_weight * clean.inv_sum;
  row.doubt = -ce_grad_of_weight(clean, label_weight, true);
  const float p = ce_grad(adv, rival_logit, false);
  // From the sum of the others where p is near 1, so that nothing cancels in 1 - p.
  const float others = -ce_grad(adv, rival_logit, true);
  const float left = 1e-4f + others;
  row.margin = p < 0.5f ? -log1p_f32(1e-4f - p) : -log_f32(left);
  row.slope = p / left;
  return row;
}

ARD_HD PairTerms mart_terms(const MartRow& row, float label_logit, float kl) {
  // A row without doubt has no such term, even where the KL is infinite.
  return PairTerms{row.doubt == 0.0f ? 0.0f : row.doubt * kl,
                   ce_loss(row.adv, label_logit) + row.margin};
}

// The gradient to one adversarial logit. ce: ce_grad of the class, rival_ce: as if the rival were
// the label; kl_grad: p - q.
ARD_HD float mart_adv_grad(const MartRow& row, float ce, float rival_ce, float kl_grad,
                           PairTerms weight) {
  return weight.ce * (ce - rival_ce * row.slope) + weight.kl * row.doubt * kl_grad;
}

ARD_HD float mart_adv_grad(const MartRow& row, float logit, bool is_label, bool is_rival,
                           float kl_grad, PairTerms weight) {
  return mart_adv_grad(row, ce_grad(row.adv, logit, is_label), ce_grad(row.adv, logit, is_rival),
                       kl_grad, weight);
}

// The gradient to one clean logit. kl_grad: kd_teacher_grad of the class.
ARD_HD float mart_clean_grad(const MartRow& row, float clean_weight, bool is_label, float kl,
                             float kl_grad, PairTerms weight) {
  const float doubt_grad = row.q_label * ce_grad_of_weight(row.clean, clean_weight, is_label);
  return weight.kl * (row.doubt * kl_grad + kl * doubt_grad);
}

namespace cpu {

// Rows [begin, end).
void pair_loss(const PairLossParams& p, Dtype dtype, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

// total: [] or null to leave the rows unsummed.
void launch_pair_loss(const PairLossParams& p, Dtype dtype, float* total, Stream stream);

}  // namespace cuda

}  // namespace ard
