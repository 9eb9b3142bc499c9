// One row of logits as whole vectors, for the loops over rows.
#pragma once

#include "core/half.h"
#include "cpu/simd.h"

namespace ard::cpu {

// Sums are kept in kLanes floats over at most this many elements, then in double: the rounding
// error of a row does not grow with the number of classes.
constexpr int64_t kSumBlock = 1024;

ARD_HD float lane_max(const float* lanes) {
  float max = lanes[0];
  for (int l = 1; l < kLanes; ++l) max = max_or_second(lanes[l], max);
  return max;
}

ARD_HD float lane_min(const float* lanes) {
  float min = lanes[0];
  for (int l = 1; l < kLanes; ++l) min = min_or_second(lanes[l], min);
  return min;
}

// The logits of one row as whole vectors of floats. A float row is read where it lies, but for its
// last partial vector; other dtypes are converted first. Padding is -inf, a class that neither
// network allows: it adds nothing to any sum.
struct RowView {
  const float* data;  // [classes] at least
  const float* tail;  // the vectors from `whole` on
  int64_t whole;      // classes that lie in whole vectors of `data`
  int64_t padded;     // classes, rounded up to whole vectors

  ARD_HD const float* vector_at(int64_t c) const { return c < whole ? data + c : tail; }
};

ARD_HD void load_tail(const float* row, int64_t classes, int64_t from, float* out) {
  for (int64_t c = from; c < from + kLanes; ++c) out[c - from] = c < classes ? row[c] : -INFINITY;
}

ARD_HD RowView view_row(const float* row, int64_t classes, int64_t padded, float*, float* tail) {
  const int64_t whole = classes / kLanes * kLanes;
  if (whole < classes) load_tail(row, classes, whole, tail);
  return RowView{row, tail, whole, padded};
}

template <typename T>
ARD_HD RowView view_row(const T* row, int64_t classes, int64_t padded, float* converted, float*) {
  for (int64_t c = 0; c < classes; ++c) converted[c] = to_float(row[c]);
  for (int64_t c = classes; c < padded; ++c) converted[c] = -INFINITY;
  return RowView{converted, nullptr, padded, padded};
}

// The largest logit of the row; NaN is passed over.
ARD_HD float vector_max(const RowView& row) {
  float tops[kLanes];
  for (int l = 0; l < kLanes; ++l) tops[l] = -INFINITY;
  for (int64_t c = 0; c < row.padded; c += kLanes) {
    const float* v = row.vector_at(c);
    ARD_LANES for (int l = 0; l < kLanes; ++l) tops[l] = max_or_second(v[l], tops[l]);
  }
  return lane_max(tops);
}

}  // namespace ard::cpu
