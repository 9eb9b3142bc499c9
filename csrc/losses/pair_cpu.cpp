#include "losses/fused.h"  // before all others

#include "losses/pair.h"
#include "losses/rows_cpu.h"

namespace ard::cpu {
namespace {

constexpr int kPairArrays = 7;  // beside those of kl_rows

// The largest logit of each row but the label's and the lowest class that has it; NaN is passed
// over.
struct Rivals {
  Lanes logit;
  int index[kLanes];
};

ARD_CLONES void find_rivals(const Block& block, const float* logits, const int64_t* labels,
                            Rivals& out) {
  Rivals found;
  int label[kLanes];
  found.logit = all_lanes(-INFINITY);
  for (int64_t l = 0; l < kLanes; ++l) {
    label[l] = int(labels[block.side_by_side ? std::min(l, block.count - 1) : 0]);
    found.index[l] = label[l] == 0 ? 1 : 0;
  }
  const int step = block.side_by_side ? 0 : 1;
  each_vector(0, block.size(), block.size(), [&](int64_t at, int) __attribute__((always_inline)) {
    const int first = int(block.side_by_side ? at / kLanes : at);
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      const int c = first + l * step;
      const bool above = (logits[at + l] > found.logit.at[l]) & (c != label[l]);
      found.logit.at[l] = lane_pick(above, logits[at + l], found.logit.at[l]);
      found.index[l] = lane_pick(above, c, found.index[l]);
    }
  });
  if (!block.side_by_side) {
    const float top = lane_extreme<true>(found.logit);
    int lowest = 0x7fffffff;
    for (int l = 0; l < kLanes; ++l) {
      lowest = std::min(lowest, found.logit.at[l] == top ? found.index[l] : 0x7fffffff);
    }
    found.logit.at[0] = top;
    found.index[0] = lowest;
  }
  out = found;
}

// A value for each of the two terms of each row.
struct PairLanes {
  Lanes kl, ce;
  ARD_HD PairTerms of(int64_t r) const { return PairTerms{kl.at[r], ce.at[r]}; }
};

ARD_CLONES void trades_clean_grads(int64_t size, const CeRows& ce, const float* weights,
                                   const float* kl_grad, const PairLanes& by,
                                   float* __restrict grad) {
  each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      grad[c + l] = trades_clean_grad(ce.of(l), weights[c + l], false, kl_grad[c + l], by.of(l));
    }
  });
}

struct MartRows {
  CeRows adv, clean;
  Lanes margin, slope, q_label, doubt;

  ARD_HD MartRow of(int64_t r) const {
    return MartRow{adv.of(r), clean.of(r), margin.at[r], slope.at[r], q_label.at[r], doubt.at[r]};
  }
};

ARD_CLONES void mart_adv_grads(int64_t size, const MartRows& rows, const float* weights,
                               const float* kl_grad, const PairLanes& by, float* __restrict grad) {
  each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      const MartRow row = rows.of(l);
      const float ce = ce_grad_of_weight(row.adv, weights[c + l], false);
      grad[c + l] = mart_adv_grad(row, ce, ce, kl_grad[c + l], by.of(l));
    }
  });
}

ARD_CLONES void mart_clean_grads(int64_t size, const MartRows& rows, const float* weights,
                                 const Lanes& kl, const float* kl_grad, const PairLanes& by,
                                 float* __restrict grad) {
  each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      grad[c + l] =
          mart_clean_grad(rows.of(l), weights[c + l], false, kl.at[l], kl_grad[c + l], by.of(l));
    }
  });
}

// What both losses begin with: the rows' KL, the adversarial rows against the clean ones, and the
// clean rows' cross-entropy.
struct PairRows {
  KlRows kl;
  CeRows clean;
};

PairRows pair_rows(const PairLossParams& p, Dtype dtype, const Block& block, const BlockScratch& b,
                   float* to_adv, const Lanes& grad_weight) {
  PairRows rows;
  KlRows& kl = rows.kl;
  kl.student = load_rows(block, p.adv, dtype, p.adv_stride, b[0]);
  kl.teacher = load_rows(block, p.clean, dtype, p.clean_stride, b[1]);
  kl.weights = b[2];
  kl.to_student = to_adv;
  kl.to_teacher = p.grad_clean ? b[3] : nullptr;
  kl.inv_temperature = 1.0f;
  kl.inv_teacher_temperature = kl.teacher_grad_weight = all_lanes(1.0f);
  kl.grad_weight = grad_weight;
  kl_rows(block, kl, b, kPairArrays);
  rows.clean = ce_of_weights(block, kl.teacher_max, kl.weights);
  return rows;
}

// Writes the gradients and returns the terms of the loss.
PairLanes trades(const PairLossParams& p, Dtype dtype, const Block& block, const BlockScratch& b,
                 const PairLanes& by) {
  const int64_t* const labels = p.labels + block.row;
  float* const grad_adv = place_rows(block, p.grad_adv, dtype, b[4]);
  const PairRows rows = pair_rows(p, dtype, block, b, grad_adv, by.kl);
  store_rows(block, grad_adv, p.grad_adv, dtype);
  float* const grad = place_rows(block, p.grad_clean, dtype, b[4]);
  if (grad) {
    trades_clean_grads(block.size(), rows.clean, rows.kl.weights, rows.kl.to_teacher, by, grad);
  }
  PairLanes terms{rows.kl.kl, {}};
  for (int64_t r = 0; r < block.count; ++r) {
    const int64_t at = block.index(r, labels[r]);
    const CeRow ce = rows.clean.of(r);
    terms.ce.at[r] = ce_loss(ce, rows.kl.teacher[at]);
    if (grad) {
      grad[at] = trades_clean_grad(ce, rows.kl.weights[at], true, rows.kl.to_teacher[at], by.of(r));
    }
  }
  store_rows(block, grad, p.grad_clean, dtype);
  return terms;
}

PairLanes mart(const PairLossParams& p, Dtype dtype, const Block& block, const BlockScratch& b,
               const PairLanes& by) {
  const int64_t* const labels = p.labels + block.row;
  const PairRows pair = pair_rows(p, dtype, block, b, p.grad_adv ? b[4] : nullptr, all_lanes(1.0f));
  const KlRows& kl = pair.kl;
  const float* const adv_weights = b[5];
  MartRows rows;
  rows.clean = pair.clean;
  rows.adv = ce_of_logits(block, kl.student, b[5]);
  Rivals rivals;
  find_rivals(block, kl.student, labels, rivals);
  MartRow row;
  for (int64_t l = 0; l < kLanes; ++l) {
    if (l < block.count) {
      row = mart_row(rows.adv.of(l), rivals.logit.at[l], rows.clean.of(l),
                     kl.weights[block.index(l, labels[l])]);
    }
    rows.margin.at[l] = row.margin;
    rows.slope.at[l] = row.slope;
    rows.q_label.at[l] = row.q_label;
    rows.doubt.at[l] = row.doubt;
  }
  float* const grad_adv = place_rows(block, p.grad_adv, dtype, b[6]);
  if (grad_adv) {
    mart_adv_grads(block.size(), rows, adv_weights, kl.to_student, by, grad_adv);
    for (int64_t r = 0; r < block.count; ++r) {
      for (const int64_t c : {labels[r], int64_t(rivals.index[r])}) {
        const int64_t at = block.index(r, c);
        const float w = adv_weights[at];
        grad_adv[at] =
            mart_adv_grad(rows.of(r), ce_grad_of_weight(rows.adv.of(r), w, c == labels[r]),
                          ce_grad_of_weight(rows.adv.of(r), w, c == rivals.index[r]),
                          kl.to_student[at], by.of(r));
      }
    }
    store_rows(block, grad_adv, p.grad_adv, dtype);
  }
  if (float* const grad = place_rows(block, p.grad_clean, dtype, b[6])) {
    mart_clean_grads(block.size(), rows, kl.weights, kl.kl, kl.to_teacher, by, grad);
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t at = block.index(r, labels[r]);
      grad[at] = mart_clean_grad(rows.of(r), kl.weights[at], true, kl.kl.at[r], kl.to_teacher[at],
                                 by.of(r));
    }
    store_rows(block, grad, p.grad_clean, dtype);
  }
  PairLanes terms;
  for (int64_t r = 0; r < block.count; ++r) {
    const PairTerms of_row =
        mart_terms(rows.of(r), kl.student[block.index(r, labels[r])], kl.kl.at[r]);
    terms.kl.at[r] = of_row.kl;
    terms.ce.at[r] = of_row.ce;
  }
  return terms;
}

}  // namespace

void pair_loss(const PairLossParams& p, Dtype dtype, int64_t begin, int64_t end) {
  const BlockScratch b(p.classes, kPairArrays + kKlArrays);
  each_block(p.classes, begin, end, [&](const Block& block) {
    const Lanes weight = row_values(block, p.weight, 1.0f);
    const PairLanes by{weight * p.kl_grad_weight, weight * p.ce_grad_weight};
    const PairLanes terms = p.mart ? mart(p, dtype, block, b, by) : trades(p, dtype, block, b, by);
    for (int64_t r = 0; r < block.count; ++r) {
      p.loss_rows[block.row + r] =
          weighted_loss(weight.at[r], p.kl_weight, terms.kl.at[r], p.ce_weight, terms.ce.at[r]);
    }
  });
}

}  // namespace ard::cpu
