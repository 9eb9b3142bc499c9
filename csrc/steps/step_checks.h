// What the steps of all attacks demand of their tensors, and the part of their params that is the
// same.
#pragma once

#include "common/checks.h"
#include "common/levels.h"

namespace ard {

// Leaves the sizes to the caller.
template <typename Params>
Params pack_step(Tensor& x_adv,                                      // [B, ...] float32, written
                 const Tensor& grad,                                 // [B, ...]
                 const Tensor& x,                                    // [B, ...] float32
                 const std::optional<Tensor>& step_size_per_sample,  // [B]
                 const std::optional<Tensor>& eps_per_sample,        // [B]
                 double step_size, double eps, bool targeted, double lower, double upper) {
  check_dtype(x_adv, "x_adv", ScalarType::Float, "float32 (iterates stay in full precision)");
  check_dtype(x, "x", ScalarType::Float, "float32");
  check_float_dtype(grad, "grad");
  check_like(grad, "grad", x_adv, "x_adv");
  check_like(x, "x", x_adv, "x_adv");
  check_dense(x_adv, "x_adv");
  check_same_layout(grad, "grad", x_adv, "x_adv");
  check_same_layout(x, "x", x_adv, "x_adv");
  check_per_sample(step_size_per_sample, "step_size", x_adv, ScalarType::Float, "float32");
  check_per_sample(eps_per_sample, "eps", x_adv, ScalarType::Float, "float32");
  check_no_partial_overlap(x_adv, "x_adv", x, "x");
  check_no_partial_overlap(x_adv, "x_adv", grad, "grad");
  if (step_size_per_sample) check_apart(x_adv, "x_adv", *step_size_per_sample, "step_size");
  if (eps_per_sample) check_apart(x_adv, "x_adv", *eps_per_sample, "eps");

  Params p{};
  p.x_adv = static_cast<float*>(x_adv.data_ptr());
  p.grad = grad.data_ptr();
  p.x = static_cast<const float*>(x.data_ptr());
  p.step_size_per_sample = data_or_null<float>(step_size_per_sample);
  p.eps_per_sample = data_or_null<float>(eps_per_sample);
  p.step_size = float(step_size);
  p.eps = float(eps);
  p.direction = targeted ? -1.0f : 1.0f;
  p.lower = float(lower);
  p.upper = float(upper);
  return p;
}

// 0 for none.
inline Levels checked_levels(int64_t levels) {
  ARD_CHECK(levels >= 0 && levels <= 255, "levels must be from 1 to 255, got ", levels);
  return pixel_levels(levels);
}

// Samples that one thread takes at a time: enough work to be worth a thread.
inline int64_t sample_grain(int64_t sample_numel) {
  constexpr int64_t kElements = 1 << 14;
  return sample_numel < kElements ? kElements / (sample_numel ? sample_numel : 1) : 1;
}

}  // namespace ard
