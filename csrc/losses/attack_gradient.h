// Gradients of the losses that compare a few logits of a row: the margin (Carlini & Wagner 2017, as
// PGD uses it) and the difference of logits ratio (Croce & Hein 2020, equation 6) with its targeted
// form. Cross-entropy is in rows.h.
//
// All are -(z_label - z_other) over a denominator, so that one form serves:
//
//   loss = -n / d,   n = z_label - z_other,   d = z_(1) - (a z_(3) + b z_(4)) + 1e-12
//   dloss/dz_c = (1 / d) * ([c = other] - [c = label] + (n / d) * dd/dz_c)
//
// from halves of n and d, which do not overflow for finite logits, and with d = 1 for the margin.
// z_(k) is the k-th largest logit; among equals the lowest class is first.
#pragma once

#include "common/half.h"

namespace ard {

// The numbers are those of the operator's argument.
enum class AttackLoss { ce = 0, margin = 1, dlr = 2, dlr_targeted = 3 };

// B batch, C classes.
struct AttackGradientParams {
  const void* logits;             // [B, C]
  const int64_t* labels;          // [B]
  const int64_t* target_classes;  // [B], or null but for dlr_targeted
  void* grad;                     // [B, C] contiguous
  float* loss_rows;               // [B], or null
  bool* correct;                  // [B], or null together with loss_rows
  float* grad_scale;              // [B], the power of two that each row of grad was multiplied by,
                                  // or null for none
  int64_t batch;
  int64_t classes;
  int64_t logits_stride;  // elements between rows
  AttackLoss loss;
  float kappa;  // of the margin
};

// A class that no row has: fills the places of a ranking with more places than classes.
constexpr int kNoClass = 0x7fffffff;

struct Ranked {
  float value;
  int index;
};

// The four largest logits, the largest first.
struct Top4 {
  Ranked at[4];
};

ARD_HD Top4 top4_empty() {
  return Top4{
      {{-INFINITY, kNoClass}, {-INFINITY, kNoClass}, {-INFINITY, kNoClass}, {-INFINITY, kNoClass}}};
}

// False for a NaN: it is never ranked.
ARD_HD bool ranks_before(const Ranked& a, const Ranked& b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}

ARD_HD void put_in_order(Ranked& first, Ranked& second) {
  const bool swap = ranks_before(second, first);
  const Ranked kept = first;
  first = swap ? second : first;
  second = swap ? kept : second;
}

ARD_HD void top4_insert(Top4& top, Ranked candidate) {
  if (!ranks_before(candidate, top.at[3])) return;
  top.at[3] = candidate;
  put_in_order(top.at[2], top.at[3]);
  put_in_order(top.at[1], top.at[2]);
  put_in_order(top.at[0], top.at[1]);
}

// What decides the gradient of a row.
struct ComparedRow {
  float loss;
  float scale;          // 1 / d; 0 where the margin is switched off, NaN where the loss is NaN
  float ratio;          // n / d, the weight of the denominator's own gradient; 0 for the margin
  float spread_weight;  // a, and b where there is a fourth class
  int label, other;
  int first_class, third_class, fourth_class;
};

// target is used by dlr_targeted only. has_nan: some logit of the row is NaN.
ARD_HD ComparedRow compared_row(AttackLoss loss, float kappa, const Top4& top, int label,
                                float label_logit, int target, float target_logit, bool has_nan) {
  ComparedRow row;
  row.label = label;
  row.first_class = row.third_class = row.fourth_class = kNoClass;
  const Ranked rival = top.at[0].index == label ? top.at[1] : top.at[0];
  const bool targeted = loss == AttackLoss::dlr_targeted;
  row.other = targeted ? target : rival.index;
  const float gap = label_logit - (targeted ? target_logit : rival.value);
  if (loss == AttackLoss::margin) {
    // An infinite kappa never switches off, and is no part of the loss.
    const float above = kappa == INFINITY ? gap : gap + kappa;
    const bool off = kappa != INFINITY && above <= 0.0f;
    row.loss = off ? 0.0f : -above;
    row.scale = off ? 0.0f : 1.0f;
    row.ratio = row.spread_weight = 0.0f;
  } else {
    row.first_class = top.at[0].index;
    row.third_class = top.at[2].index;
    if (targeted) row.fourth_class = top.at[3].index;
    row.spread_weight = targeted ? 0.5f : 1.0f;
    const float half_first = 0.5f * top.at[0].value;
    const float to_third = half_first - 0.5f * top.at[2].value;
    // The mean of two differences: neither loses digits to the size of the logits.
    const float spread =
        targeted ? 0.5f * to_third + 0.5f * (half_first - 0.5f * top.at[3].value) : to_third;
    const float half_gap = 0.5f * label_logit - 0.5f * (targeted ? target_logit : rival.value);
    const float denominator = spread + 0.5e-12f;
    row.scale = 0.5f / denominator;
    row.ratio = half_gap / denominator;
    row.loss = -row.ratio;
  }
  if (has_nan || row.loss != row.loss) row.loss = row.scale = NAN;
  return row;
}

// Saturating, so that a backward pass through a network starts from finite numbers; NaN stays.
template <typename T>
ARD_HD T finite_from_float(float value);

template <>
ARD_HD float finite_from_float<float>(float value) {
  return clamp_nan(value, -3.40282347e38f, 3.40282347e38f);
}

template <>
ARD_HD f16 finite_from_float<f16>(float value) {
  return from_float<f16>(clamp_nan(value, -65504.0f, 65504.0f));
}

template <>
ARD_HD bf16 finite_from_float<bf16>(float value) {
  return from_float<bf16>(clamp_nan(value, -3.38953139e38f, 3.38953139e38f));
}

// dloss/dz of one class. The terms of a class that plays several parts are added before scaling:
// where they cancel, as for a label that ranks third in DLR, the result is exactly 0.
ARD_HD float compared_grad(const ComparedRow& row, int c) {
  float sum = c == row.other ? 1.0f : 0.0f;
  sum -= c == row.label ? 1.0f : 0.0f;
  sum += c == row.first_class ? row.ratio : 0.0f;
  sum -= c == row.third_class ? row.spread_weight * row.ratio : 0.0f;
  sum -= c == row.fourth_class ? row.spread_weight * row.ratio : 0.0f;
  return row.scale * sum;
}

// From here on compared_grad gives its gradients times the returned power of two, the largest in
// [1, 2).
ARD_HD float compared_scale_gradient(ComparedRow& row) {
  if (row.scale != row.scale) return 1.0f;
  const int parts[] = {row.label, row.other, row.first_class, row.third_class, row.fourth_class};
  float largest = 0.0f;
  for (int k = 0; k < 5; ++k) {
    const float size = parts[k] == kNoClass ? 0.0f : magnitude(compared_grad(row, parts[k]));
    largest = max_or_second(size, largest);
  }
  const float factor = power_of_two_to_one(largest);
  if (largest > 0.0f) row.scale *= factor;  // 1 / d times 2^126 would overflow
  return factor;
}

namespace cpu {

// Rows [begin, end). Labels and target classes are in range.
void attack_gradient(const AttackGradientParams& p, Dtype dtype, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

void launch_attack_gradient(const AttackGradientParams& p, Dtype dtype, Stream stream);

}  // namespace cuda

}  // namespace ard
