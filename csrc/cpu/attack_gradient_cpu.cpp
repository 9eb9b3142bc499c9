#include "cpu/fused.h"  // before all others

#include "cpu/attack_gradient.h"

#include <memory>

#include "core/attack_gradient_math.h"
#include "cpu/ce_row.h"
#include "cpu/row_view.h"
#include "cpu/top4_row.h"

namespace ard::cpu {
namespace {

// Whether the label is the largest logit, the first one of its size; never with a NaN in the row.
ARD_HD bool label_is_largest(const RowView& logits, int64_t label) {
  const float value = logits.vector_at(label / kLanes * kLanes)[label % kLanes];
  for (int64_t c = 0; c < logits.padded; c += kLanes) {
    const float* v = logits.vector_at(c);
    int other = 0;
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      // Not above: smaller, or of the same size and not before the label. False for a NaN.
      const int tie = c + l >= label ? 1 : 0;
      other |= v[l] < value ? 0 : (v[l] == value ? 1 - tie : 1);
    }
    if (other) return false;
  }
  return true;
}

template <typename T>
ARD_HD void rows(const AttackGradientParams& p, float* converted, int64_t padded, int64_t begin,
                 int64_t end) {
  float tail[kLanes];
  for (int64_t i = begin; i < end; ++i) {
    const RowView logits = view_row(static_cast<const T*>(p.logits) + i * p.logits_stride,
                                    p.classes, padded, converted, tail);
    const int64_t label = p.labels[i];
    T* grad = static_cast<T*>(p.grad) + i * p.classes;
    if (p.loss == AttackLoss::ce) {
      CeRow row = ce_row_of(logits);
      if (p.grad_scale) p.grad_scale[i] = ce_scale_gradient(row, logits.data[label]);
      ce_row_grad(logits, row, label, p.classes, 1.0f, grad);
      if (p.loss_rows) {
        p.loss_rows[i] = ce_loss(row, logits.data[label]);
        p.correct[i] = label_is_largest(logits, label);
      }
      continue;
    }
    const auto logit = [&](int64_t c) { return logits.vector_at(c / kLanes * kLanes)[c % kLanes]; };
    const RankedRow ranked = rank_row(logits, p.classes);
    const int64_t target = p.target_classes ? p.target_classes[i] : label;
    ComparedRow row = compared_row(p.loss, p.kappa, ranked.top, int(label), logit(label),
                                   int(target), logit(target), ranked.has_nan);
    if (p.grad_scale) p.grad_scale[i] = compared_scale_gradient(row);
    // All other classes; NaN where the row is.
    const T rest = from_float<T>(row.scale == row.scale ? 0.0f : row.scale);
    for (int64_t c = 0; c < p.classes; ++c) grad[c] = rest;
    const int parts[] = {row.label, row.other, row.first_class, row.third_class, row.fourth_class};
    for (const int c : parts) {
      if (c != kNoClass) grad[c] = finite_from_float<T>(compared_grad(row, c));
    }
    if (p.loss_rows) {
      p.loss_rows[i] = row.loss;
      p.correct[i] = ranked.top.at[0].index == row.label && !ranked.has_nan;
    }
  }
}

ARD_CLONES void rows_f32(const AttackGradientParams& p, float* converted, int64_t padded,
                         int64_t begin, int64_t end) {
  rows<float>(p, converted, padded, begin, end);
}

ARD_CLONES void rows_f16(const AttackGradientParams& p, float* converted, int64_t padded,
                         int64_t begin, int64_t end) {
  rows<f16>(p, converted, padded, begin, end);
}

ARD_CLONES void rows_bf16(const AttackGradientParams& p, float* converted, int64_t padded,
                          int64_t begin, int64_t end) {
  rows<bf16>(p, converted, padded, begin, end);
}

}  // namespace

void attack_gradient(const AttackGradientParams& p, Dtype dtype, int64_t begin, int64_t end) {
  const int64_t padded = (p.classes + kLanes - 1) / kLanes * kLanes;
  if (dtype == Dtype::f32) return rows_f32(p, nullptr, padded, begin, end);
  const std::unique_ptr<float[]> converted(new float[padded]);
  if (dtype == Dtype::f16) return rows_f16(p, converted.get(), padded, begin, end);
  rows_bf16(p, converted.get(), padded, begin, end);
}

}  // namespace ard::cpu
