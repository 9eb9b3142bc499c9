// The cross-entropy of one row of logits.
#pragma once

#include "core/kd_math.h"
#include "cpu/row_view.h"

namespace ard::cpu {

// What the loss and the gradient of one row are computed from.
ARD_HD CeRow ce_row_of(const RowView& logits) {
  const float max = vector_max(logits);
  double weight_sum = 0.0, max_count = 0.0;
  for (int64_t block = 0; block < logits.padded; block += kSumBlock) {
    const int64_t stop = block + kSumBlock < logits.padded ? block + kSumBlock : logits.padded;
    float weights[kLanes] = {}, counts[kLanes] = {};
    for (int64_t c = block; c < stop; c += kLanes) {
      const float* v = logits.vector_at(c);
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        weights[l] += ce_weight(max, v[l]);
        counts[l] += v[l] == max ? 1.0f : 0.0f;
      }
    }
    weight_sum += lane_sum(weights);
    max_count += lane_sum(counts);
  }
  return ce_row(max, float(weight_sum), float(max_count));
}

// grad = weight * (p - onehot).
template <typename T>
ARD_HD void ce_row_grad(const RowView& logits, const CeRow& row, int64_t label, int64_t classes,
                        float weight, T* __restrict grad) {
  const float* __restrict z = logits.data;
  for (int64_t c = 0; c < classes; ++c) {
    grad[c] = from_float<T>(ce_grad(row, z[c], false) * weight);
  }
  grad[label] = from_float<T>(ce_grad(row, logits.data[label], true) * weight);
}

}  // namespace ard::cpu
