// The copies of the Auto-PGD step, the same for both norms.
#pragma once

#include "core/apgd_math.h"

namespace ard::cpu {

template <typename T>
void copy_elements(T* to, const T* from, int64_t count) {
  std::memcpy(to, from, size_t(count) * sizeof(T));
}

// Keeps what the decision says, and returns the gradient to step along from x_adv.
template <typename GradT>
const GradT* apgd_select(const ApgdParams& p, const ApgdDecision& d, int64_t at, int64_t count) {
  const GradT* grad = static_cast<const GradT*>(p.grad) + (p.grad ? at : 0);
  GradT* grad_best = static_cast<GradT*>(p.grad_best) + at;
  float* x_adv = p.x_adv + at;
  if (d.keep_fooled) copy_elements(p.x_fooled + at, x_adv, count);
  if (d.improved) {
    copy_elements(p.x_best + at, x_adv, count);
    if (p.grad) copy_elements(grad_best, grad, count);
  }
  if (!p.grad) return nullptr;
  if (d.from_best) {
    copy_elements(x_adv, p.x_best + at, count);
    grad = grad_best;
  }
  // The move before the start is none.
  if (p.first) copy_elements(p.x_prev + at, x_adv, count);
  return grad;
}

}  // namespace ard::cpu
