// The cross-entropy of one row of logits and its gradient: the row is read from memory once when it
// can be staged in shared memory.
#pragma once

#include "core/half.h"
#include "core/kd_math.h"
#include "cuda/reduce.cuh"
#include "cuda/row_loop.cuh"

namespace ard::cuda {

// Returns the loss; writes grad_weight * (p - onehot) unless grad is null, and unless correct is
// null whether the label is the largest logit, the first of its size, of a row without NaN. Unless
// scale is null the gradient comes times a power of two, written there (see ce_scale_gradient).
//
// A label outside [0, C) cannot be reported from here: the row's loss and gradient become NaN.
template <typename T, int kVec, bool kCached, typename Group>
__device__ float ce_row_loss(const T* logits, int64_t classes, int64_t label, T* staged,
                             float grad_weight, T* grad, float* scale, bool* correct,
                             Group& group) {
  const bool valid = label >= 0 && label < classes;

  float max = -INFINITY;
  ARD_FOR_VECTORS(c, classes) {
    const Vec<T, kVec> z = load_vec<kVec>(logits + c);
    if constexpr (kCached) store_vec<kVec>(staged + c, z);
#pragma unroll
    for (int j = 0; j < kVec; ++j) max = max_or_second(to_float(z.v[j]), max);
  }
  max = group.reduce(max, MaxOp());
  const float label_logit = valid ? to_float(logits[label]) : max;

  float weight_sum = 0.0f, max_count = 0.0f, beaten = valid ? 0.0f : 1.0f;
  ARD_FOR_VECTORS(c, classes) {
    const Vec<T, kVec> z = row_vec<kVec, kCached>(logits, staged, c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float value = to_float(z.v[j]);
      weight_sum += ce_weight(max, value);
      max_count += value == max ? 1.0f : 0.0f;
      const bool below = value < label_logit || (value == label_logit && c + j >= label);
      if (!below) beaten = 1.0f;
    }
  }
  weight_sum = group.reduce(weight_sum, SumOp());
  max_count = group.reduce(max_count, SumOp());
  CeRow row = ce_row(max, weight_sum, max_count);
  if (!valid) row.rest = row.inv_sum = NAN;
  if (scale) {
    const float factor = ce_scale_gradient(row, label_logit);
    if (group.rank() == 0) *scale = factor;
  }

  if (grad) {
    ARD_FOR_VECTORS(c, classes) {
      const Vec<T, kVec> z = row_vec<kVec, kCached>(logits, staged, c);
      Vec<T, kVec> out;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        out.v[j] = from_float<T>(ce_grad(row, to_float(z.v[j]), c + j == label) * grad_weight);
      }
      store_vec<kVec>(grad + c, out);
    }
  }
  if (correct) {
    beaten = group.reduce(beaten, MaxOp());
    if (group.rank() == 0) *correct = beaten == 0.0f;
  }
  return ce_loss(row, label_logit);
}

}  // namespace ard::cuda
