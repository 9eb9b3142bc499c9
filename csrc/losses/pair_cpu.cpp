#include "losses/fused.h"  // before all others

#include "losses/pair.h"
#include "losses/rows_cpu.h"

namespace ard::cpu {
namespace {

// As ce_row_of, from the weights.
ARD_HD CeRow ce_row_of_weights(float max, const float* w, int64_t padded) {
  double rest_sum = 0.0, count_sum = 0.0;
  for (int64_t block = 0; block < padded; block += kSumBlock) {
    const int64_t stop = block + kSumBlock < padded ? block + kSumBlock : padded;
    float rests[kLanes] = {}, counts[kLanes] = {};
    for (int64_t c = block; c < stop; c += kLanes) {
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        rests[l] += ce_rest_of_weight(w[c + l]);
        counts[l] += ce_count_of_weight(w[c + l]);
      }
    }
    rest_sum += lane_sum(rests);
    count_sum += lane_sum(counts);
  }
  return ce_row(max, float(rest_sum), float(count_sum));
}

// The largest logit but the label's and the lowest class that has it; NaN is passed over.
struct Rival {
  float logit;
  int64_t index;
};

ARD_HD Rival rival_of(const RowView& logits, int64_t label, int64_t classes) {
  float tops[kLanes];
  for (int l = 0; l < kLanes; ++l) tops[l] = -INFINITY;
  for (int64_t c = 0; c < logits.padded; c += kLanes) {
    const float* v = logits.vector_at(c);
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      const float other = c + l == label ? -INFINITY : v[l];
      tops[l] = max_or_second(other, tops[l]);
    }
  }
  const float top = lane_max(tops);
  for (int64_t c = 0; c < logits.padded; c += kLanes) {
    const float* v = logits.vector_at(c);
    int found = 0;
    ARD_LANES for (int l = 0; l < kLanes; ++l) found |= v[l] == top;
    for (int l = 0; found && l < kLanes; ++l) {
      if (v[l] == top && c + l != label && c + l < classes) return Rival{top, c + l};
    }
  }
  return Rival{top, label == 0 ? 1 : 0};  // all others are NaN, and so is the row
}

// TRADES' gradient to the clean logits, unless grad is null, and the row's cross-entropy.
template <typename T>
struct TradesClean {
  T* __restrict grad;
  int64_t classes, padded, label;
  PairTerms weight;
  CeRow* ce;

  ARD_HD T element(const KdRow& row, float gap, float w, bool is_label) const {
    return from_float<T>(trades_clean_grad(*ce, w, is_label, kd_teacher_grad(row, gap, w), weight));
  }

  ARD_HD void operator()(const KdRow& row, const float* gap, const float* w) const {
    *ce = ce_row_of_weights(row.teacher_ref, w, padded);
    if (!grad) return;
    for (int64_t c = 0; c < classes; ++c) grad[c] = element(row, gap[c], w[c], false);
    grad[label] = element(row, gap[label], w[label], true);
  }
};

template <typename T>
ARD_HD PairTerms trades_row(const PairLossParams& p, const RowView& adv, const RowView& clean,
                            const KlScratch& b, int64_t index, PairTerms grad_weight) {
  const int64_t label = p.labels[index];
  const float label_logit = clean.data[label];
  CeRow ce{};
  const TradesClean<T> of_clean{
      row_or_null<T>(p.grad_clean, index, p.classes), p.classes, b.padded, label, grad_weight, &ce};
  const float kl = kl_row(adv, clean, b, 1.0f, 1.0f, p.classes, grad_weight.kl,
                          row_or_null<T>(p.grad_adv, index, p.classes), nullptr, of_clean);
  return PairTerms{kl, ce_loss(ce, label_logit)};
}

// Keeps what MART needs of the clean row, where its loss decides the weights: the classes' weights
// and the KL's gradient to the clean logits.
struct MartClean {
  float* __restrict weights;
  float* __restrict kl_grad;
  int64_t padded;
  CeRow* ce;

  ARD_HD void operator()(const KdRow& row, const float* gap, const float* w) const {
    *ce = ce_row_of_weights(row.teacher_ref, w, padded);
    ARD_LANES for (int64_t c = 0; c < padded; ++c) {
      weights[c] = w[c];
      kl_grad[c] = kd_teacher_grad(row, gap[c], w[c]);
    }
  }
};

template <typename T>
ARD_HD PairTerms mart_row_of(const PairLossParams& p, const RowView& adv, const RowView& clean,
                             const KlScratch& b, int64_t index, PairTerms grad_weight) {
  const int64_t label = p.labels[index];
  float* const clean_weights = b.extra(0);
  float* const clean_kl_grad = b.extra(1);
  float* const adv_kl_grad = b.extra(2);
  const CeRow adv_ce = ce_row_of(adv);
  const Rival rival = rival_of(adv, label, p.classes);
  CeRow clean_ce{};
  const MartClean of_clean{clean_weights, clean_kl_grad, b.padded, &clean_ce};
  const float kl = kl_row(adv, clean, b, 1.0f, 1.0f, p.classes, 1.0f,
                          p.grad_adv ? adv_kl_grad : nullptr, nullptr, of_clean);
  const MartRow row = mart_row(adv_ce, rival.logit, clean_ce, clean_weights[label]);
  if (p.grad_adv) {
    T* __restrict grad = row_or_null<T>(p.grad_adv, index, p.classes);
    const float* __restrict z = adv.data;
    for (int64_t c = 0; c < p.classes; ++c) {
      grad[c] = from_float<T>(mart_adv_grad(row, z[c], false, false, adv_kl_grad[c], grad_weight));
    }
    const int64_t apart[] = {label, rival.index};
    for (const int64_t c : apart) {
      grad[c] = from_float<T>(
          mart_adv_grad(row, z[c], c == label, c == rival.index, adv_kl_grad[c], grad_weight));
    }
  }
  if (p.grad_clean) {
    T* __restrict grad = row_or_null<T>(p.grad_clean, index, p.classes);
    for (int64_t c = 0; c < p.classes; ++c) {
      grad[c] = from_float<T>(
          mart_clean_grad(row, clean_weights[c], false, kl, clean_kl_grad[c], grad_weight));
    }
    grad[label] = from_float<T>(
        mart_clean_grad(row, clean_weights[label], true, kl, clean_kl_grad[label], grad_weight));
  }
  return mart_terms(row, adv.data[label], kl);
}

template <typename T>
ARD_HD void pair_rows(const PairLossParams& p, const KlScratch& b, int64_t begin, int64_t end) {
  float tails[2][kLanes];
  for (int64_t i = begin; i < end; ++i) {
    const float weight = p.weight ? p.weight[i] : 1.0f;
    const RowView adv = view_row(static_cast<const T*>(p.adv) + i * p.adv_stride, p.classes,
                                 b.padded, b.s, tails[0]);
    const RowView clean = view_row(static_cast<const T*>(p.clean) + i * p.clean_stride, p.classes,
                                   b.padded, b.t, tails[1]);
    const PairTerms grad_weight{weight * p.kl_grad_weight, weight * p.ce_grad_weight};
    const PairTerms terms = p.mart ? mart_row_of<T>(p, adv, clean, b, i, grad_weight)
                                   : trades_row<T>(p, adv, clean, b, i, grad_weight);
    p.loss_rows[i] = weighted_loss(weight, p.kl_weight, terms.kl, p.ce_weight, terms.ce);
  }
}

ARD_CLONES void rows(const PairLossParams& p, float, const KlScratch& b, int64_t begin,
                     int64_t end) {
  pair_rows<float>(p, b, begin, end);
}

ARD_CLONES void rows(const PairLossParams& p, f16, const KlScratch& b, int64_t begin, int64_t end) {
  pair_rows<f16>(p, b, begin, end);
}

ARD_CLONES void rows(const PairLossParams& p, bf16, const KlScratch& b, int64_t begin,
                     int64_t end) {
  pair_rows<bf16>(p, b, begin, end);
}

}  // namespace

void pair_loss(const PairLossParams& p, Dtype dtype, int64_t begin, int64_t end) {
  const KlScratch scratch(p.classes, p.mart ? 3 : 0);
  for_dtype(dtype, [&](auto example) { rows(p, example, scratch, begin, end); });
}

}  // namespace ard::cpu
