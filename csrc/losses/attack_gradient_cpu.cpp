#include "losses/fused.h"  // before all others

#include "losses/attack_gradient.h"
#include "losses/rows_cpu.h"

namespace ard::cpu {
namespace {

// The four largest logits of a row, with their classes.
struct RankedRow {
  Top4 top;
  bool has_nan;
};

ARD_HD bool any_lane(const int* lanes) {
  int any = 0;
  for (int l = 0; l < kLanes; ++l) any |= lanes[l];
  return any != 0;
}

// The fourth largest of the lanes' maxima is at most the fourth largest logit, so only the few
// logits from there on need be put in order.
ARD_CLONES void rank_long_row(int64_t classes, const float* logits, RankedRow& row) {
  Lanes tops = all_lanes(-INFINITY);
  int nan[kLanes] = {};
  each_vector(0, classes, classes, [&](int64_t c, int seen) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      const float v = logits[c + l];
      tops.at[l] = max_or_second(l < seen ? -INFINITY : v, tops.at[l]);
      nan[l] = v == v ? nan[l] : 1;
    }
  });
  for (int k = 0; k < 3; ++k) {
    const float top = lane_extreme<true>(tops);
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      tops.at[l] = lane_pick(tops.at[l] == top, -INFINITY, tops.at[l]);
    }
  }
  const float threshold = lane_extreme<true>(tops);
  Top4 top = top4_empty();
  each_vector(0, classes, classes, [&](int64_t c, int seen) __attribute__((always_inline)) {
    int found = 0;
    ARD_LANES for (int l = 0; l < kLanes; ++l) found |= logits[c + l] >= threshold;
    if (!found) return;
    for (int l = seen; l < kLanes; ++l) {
      if (logits[c + l] >= threshold) top4_insert(top, Ranked{logits[c + l], int(c) + l});
    }
  });
  row = RankedRow{top, any_lane(nan)};
}

// Rows side by side: every class goes through the ranking of every row.
ARD_CLONES void rank_short_rows(const Block& block, const float* logits, RankedRow* rows) {
  float value[4][kLanes];
  int index[4][kLanes], nan[kLanes];
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    for (int k = 0; k < 4; ++k) {
      value[k][l] = -INFINITY;
      index[k][l] = kNoClass;
    }
    nan[l] = 0;
  }
  for (int c = 0; c < int(block.classes); ++c) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      Ranked next{logits[c * kLanes + l], c};
      nan[l] = next.value == next.value ? nan[l] : 1;
      for (int k = 0; k < 4; ++k) {
        Ranked kept{value[k][l], index[k][l]};
        put_in_order(kept, next);
        value[k][l] = kept.value;
        index[k][l] = kept.index;
      }
    }
  }
  for (int64_t r = 0; r < block.count; ++r) {
    for (int k = 0; k < 4; ++k) rows[r].top.at[k] = Ranked{value[k][r], index[k][r]};
    rows[r].has_nan = nan[r] != 0;
  }
}

// Whether the label is the largest logit, the first one of its size; never with a NaN in the row.
ARD_CLONES void labels_are_largest(const Block& block, const float* logits, const int64_t* labels,
                                   bool* out) {
  int label[kLanes], other[kLanes] = {};
  Lanes value;
  for (int64_t l = 0; l < kLanes; ++l) {
    const int64_t r = block.side_by_side ? std::min(l, block.count - 1) : 0;
    label[l] = int(labels[r]);
    value.at[l] = logits[block.index(r, labels[r])];
  }
  const int step = block.side_by_side ? 0 : 1;
  each_vector(0, block.size(), block.size(), [&](int64_t at, int) __attribute__((always_inline)) {
    const int first = int(block.side_by_side ? at / kLanes : at);
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      // Not above: smaller, or of the same size and not before the label. False for a NaN.
      const float v = logits[at + l];
      const int tie = first + l * step >= label[l] ? 1 : 0;
      other[l] |= v < value.at[l] ? 0 : (v == value.at[l] ? 1 - tie : 1);
    }
  });
  if (!block.side_by_side) other[0] = any_lane(other);
  for (int64_t r = 0; r < block.count; ++r) out[r] = other[r] == 0;
}

void ce_block(const AttackGradientParams& p, Dtype dtype, const Block& block,
              const BlockScratch& b) {
  const float* const logits = load_rows(block, p.logits, dtype, p.logits_stride, b[0]);
  const int64_t* const labels = p.labels + block.row;
  const CeRows rows = ce_of_logits(block, logits, b[1]);
  Lanes factor = all_lanes(1.0f);
  for (int64_t r = 0; p.grad_scale && r < block.count; ++r) {
    const float at_label = ce_grad_of_weight(rows.of(r), b[1][block.index(r, labels[r])], true);
    // The largest: all sum to 0 and the others have one sign.
    const float scale = power_of_two_to_one(magnitude(at_label));
    p.grad_scale[block.row + r] = scale;
    factor.at[r] = scale;
    if (!block.side_by_side) factor = all_lanes(scale);
  }
  float* const grad = place_rows(block, p.grad, dtype, b[2]);
  ce_gradient(block, rows, b[1], labels, factor, grad);
  store_rows(block, grad, p.grad, dtype);
  if (!p.loss_rows) return;
  for (int64_t r = 0; r < block.count; ++r) {
    p.loss_rows[block.row + r] = ce_loss(rows.of(r), logits[block.index(r, labels[r])]);
  }
  labels_are_largest(block, logits, labels, p.correct + block.row);
}

template <typename T>
void compared_block(const AttackGradientParams& p, Dtype dtype, const Block& block,
                    const BlockScratch& b) {
  const float* const logits = load_rows(block, p.logits, dtype, p.logits_stride, b[0]);
  RankedRow ranked[kLanes];
  if (block.side_by_side) {
    rank_short_rows(block, logits, ranked);
  } else {
    rank_long_row(block.classes, logits, ranked[0]);
  }
  for (int64_t r = 0; r < block.count; ++r) {
    const int64_t i = block.row + r, label = p.labels[i];
    const int64_t target = p.target_classes ? p.target_classes[i] : label;
    ComparedRow row =
        compared_row(p.loss, p.kappa, ranked[r].top, int(label), logits[block.index(r, label)],
                     int(target), logits[block.index(r, target)], ranked[r].has_nan);
    if (p.grad_scale) p.grad_scale[i] = compared_scale_gradient(row);
    T* const grad = static_cast<T*>(p.grad) + i * p.classes;
    if (row.scale == row.scale) {
      std::memset(grad, 0, size_t(p.classes) * sizeof(T));
    } else {
      std::fill_n(grad, p.classes, from_float<T>(row.scale));
    }
    const int parts[] = {row.label, row.other, row.first_class, row.third_class, row.fourth_class};
    for (const int c : parts) {
      if (c != kNoClass) grad[c] = finite_from_float<T>(compared_grad(row, c));
    }
    if (p.loss_rows) {
      p.loss_rows[i] = row.loss;
      p.correct[i] = ranked[r].top.at[0].index == row.label && !ranked[r].has_nan;
    }
  }
}

}  // namespace

void attack_gradient(const AttackGradientParams& p, Dtype dtype, int64_t begin, int64_t end) {
  const BlockScratch b(p.classes, 3);
  for_dtype(dtype, [&](auto example) {
    each_block(p.classes, begin, end, [&](const Block& block) {
      p.loss == AttackLoss::ce ? ce_block(p, dtype, block, b)
                               : compared_block<decltype(example)>(p, dtype, block, b);
    });
  });
}

}  // namespace ard::cpu
