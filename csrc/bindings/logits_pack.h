// What the losses over rows of logits check and return.
#pragma once

#include <array>

#include "bindings/checks.h"

namespace ard {

inline void check_logits(const Tensor& t, const char* name, const Tensor& like,
                         const char* like_name) {
  check_given(t, name);
  ARD_CHECK(t.dim() == 2, name, " must be logits of shape [B, C], got ", shape_of(t));
  check_like(t, name, like, like_name);
  ARD_CHECK(t.scalar_type() == like.scalar_type(), name, " must have the dtype of ", like_name,
            " (", dtype_of(like), "), got ", dtype_of(t));
  ARD_CHECK(t.size(1) == 1 || t.stride(1) == 1 || t.numel() == 0, name,
            " must have its classes contiguous in memory");
}

// [B, C] like `logits`, or empty.
inline Tensor new_gradient(const Tensor& logits, bool wanted) {
  const std::array<int64_t, 1> none{0};
  const std::array<int64_t, 2> full{logits.size(0), logits.size(1)};
  return wanted ? torch::stable::new_empty(logits, {full.data(), full.size()})
                : torch::stable::new_empty(logits, {none.data(), none.size()});
}

// float [B], or empty.
inline Tensor new_loss_rows(const Tensor& logits, bool wanted = true) {
  const std::array<int64_t, 1> rows{wanted ? logits.size(0) : 0};
  return torch::stable::new_empty(logits, {rows.data(), rows.size()}, ScalarType::Float);
}

}  // namespace ard
