#include "losses/fused.h"  // before all others

#include <memory>

#include "losses/attack_gradient.h"
#include "losses/rows_cpu.h"

namespace ard::cpu {
namespace {

// The four largest logits of a row, with their classes.
struct RankedRow {
  Top4 top;
  bool has_nan;
};

// How many of a vector's logits rank before each of them: their places, all at once and without a
// branch. A NaN ranks before none, and none before it.
ARD_HD void vector_ranks(const float* v, int* ranks) {
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    const float mine = v[l];
    int before = 0;
    for (int j = 0; j < kLanes; ++j) {
      const int tie = j < l ? 1 : 0;
      before += v[j] > mine ? 1 : (v[j] == mine ? tie : 0);
    }
    ranks[l] = before;
  }
}

ARD_HD bool any_lane(const int* lanes) {
  int any = 0;
  for (int l = 0; l < kLanes; ++l) any |= lanes[l];
  return any != 0;
}

// Up to kLanes classes.
ARD_HD RankedRow rank_short_row(const float* v, int64_t classes) {
  int ranks[kLanes], nan[kLanes];
  vector_ranks(v, ranks);
  ARD_LANES for (int l = 0; l < kLanes; ++l) nan[l] = v[l] == v[l] ? 0 : 1;
  RankedRow row{top4_empty(), any_lane(nan)};
  // With a NaN in the row places may be taken twice; its ranking is not used then.
  int at_place[kLanes] = {};
  for (int l = 0; l < int(classes); ++l) at_place[ranks[l]] = l;
  const int count = classes < 4 ? int(classes) : 4;
  for (int k = 0; k < count; ++k) row.top.at[k] = Ranked{v[at_place[k]], at_place[k]};
  return row;
}

// The fourth largest of the lanes' maxima is at most the fourth largest logit, so only the few
// logits from there on need be put in order.
ARD_HD RankedRow rank_long_row(const RowView& logits, int64_t classes) {
  float tops[kLanes];
  int nan[kLanes], ranks[kLanes];
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    tops[l] = -INFINITY;
    nan[l] = 0;
  }
  for (int64_t c = 0; c < logits.padded; c += kLanes) {
    const float* v = logits.vector_at(c);
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      tops[l] = max_or_second(v[l], tops[l]);
      nan[l] = v[l] == v[l] ? nan[l] : 1;
    }
  }
  vector_ranks(tops, ranks);
  float threshold = -INFINITY;
  for (int l = 0; l < kLanes; ++l) threshold = ranks[l] == 3 ? tops[l] : threshold;

  RankedRow row{top4_empty(), any_lane(nan)};
  for (int64_t c = 0; c < logits.padded; c += kLanes) {
    const float* v = logits.vector_at(c);
    int found = 0;
    ARD_LANES for (int l = 0; l < kLanes; ++l) found |= v[l] >= threshold;
    if (!found) continue;
    for (int l = 0; l < kLanes && c + l < classes; ++l) {
      if (v[l] >= threshold) top4_insert(row.top, Ranked{v[l], int(c) + l});
    }
  }
  return row;
}

ARD_HD RankedRow rank_row(const RowView& logits, int64_t classes) {
  return logits.padded == kLanes ? rank_short_row(logits.vector_at(0), classes)
                                 : rank_long_row(logits, classes);
}

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
ARD_HD void gradient_rows(const AttackGradientParams& p, float* converted, int64_t padded,
                          int64_t begin, int64_t end) {
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

ARD_CLONES void rows(const AttackGradientParams& p, float, float* converted, int64_t padded,
                     int64_t begin, int64_t end) {
  gradient_rows<float>(p, converted, padded, begin, end);
}

ARD_CLONES void rows(const AttackGradientParams& p, f16, float* converted, int64_t padded,
                     int64_t begin, int64_t end) {
  gradient_rows<f16>(p, converted, padded, begin, end);
}

ARD_CLONES void rows(const AttackGradientParams& p, bf16, float* converted, int64_t padded,
                     int64_t begin, int64_t end) {
  gradient_rows<bf16>(p, converted, padded, begin, end);
}

}  // namespace

void attack_gradient(const AttackGradientParams& p, Dtype dtype, int64_t begin, int64_t end) {
  const int64_t padded = (p.classes + kLanes - 1) / kLanes * kLanes;
  const std::unique_ptr<float[]> converted(dtype == Dtype::f32 ? nullptr : new float[padded]);
  for_dtype(dtype, [&](auto example) { rows(p, example, converted.get(), padded, begin, end); });
}

}  // namespace ard::cpu
