// What the losses over rows of logits share on the CPU.
#pragma once

#include "bindings/checks.h"

namespace ard {

inline void check_labels_in_range(const int64_t* labels, int64_t count, int64_t classes) {
  for (int64_t i = 0; labels && i < count; ++i) {
    ARD_CHECK(labels[i] >= 0 && labels[i] < classes, "labels must be in [0, ", classes, "), got ",
              labels[i], " at position ", i);
  }
}

// rows: float [B], contiguous.
inline Tensor sum_of_rows(const Tensor& rows) {
  Tensor total = torch::stable::new_empty(rows, {}, ScalarType::Float);
  const float* row = static_cast<const float*>(rows.data_ptr());
  double sum = 0.0;
  for (int64_t i = 0; i < rows.numel(); ++i) sum += row[i];
  *static_cast<float*>(total.data_ptr()) = float(sum);
  return total;
}

}  // namespace ard
