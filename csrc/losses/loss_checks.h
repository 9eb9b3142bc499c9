// What the losses over rows of logits check and return.
#pragma once

#include <algorithm>
#include <array>

#include "common/operators.h"

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

// What a call has no use for is a tensor without content, None in Python.

// [B, C] like `logits`.
inline Tensor new_gradient(const Tensor& logits, bool wanted) {
  if (!wanted) return Tensor();
  const std::array<int64_t, 2> sizes{logits.size(0), logits.size(1)}, strides{sizes[1], 1};
  return new_strided(logits, {sizes.data(), 2}, {strides.data(), 2}, logits.scalar_type());
}

// [B] for the rows of `logits`.
inline Tensor new_rows(const Tensor& logits, bool wanted = true,
                       ScalarType dtype = ScalarType::Float) {
  return wanted ? new_vector(logits, logits.size(0), dtype) : Tensor();
}

// Runs a loss, gpu(total, stream) or cpu(begin, end), and returns its rows or, with `reduce`, their
// sum.
template <typename Gpu, typename Cpu>
Tensor run_loss(const Tensor& logits, const Tensor& rows, bool reduce, const Gpu& gpu,
                const Cpu& cpu) {
  const Tensor loss = reduce ? new_strided(logits, {}, {}, ScalarType::Float) : rows;
  float* const total = reduce ? static_cast<float*>(loss.data_ptr()) : nullptr;
  const int64_t batch = logits.size(0), classes = logits.size(1);
  run(
      logits, [&](auto stream) { gpu(total, stream); }, batch,
      std::max<int64_t>(1, (1 << 12) / classes), cpu);
  if (total && !on_gpu(logits)) {
    const float* const row = static_cast<const float*>(rows.data_ptr());
    double sum = 0.0;
    for (int64_t i = 0; i < batch; ++i) sum += row[i];
    *total = float(sum);
  }
  return loss;
}

}  // namespace ard
