#include "steps/normed.h"

#include "common/simd.h"
#include "steps/pgd_linf.h"

namespace ard::cpu {
namespace {

// Adds up one sample; the second pass finds it in a cache. No restrict: x_adv may be x itself.
template <typename GradT>
ARD_HD L2Sums l2_sums(const float* x_adv, const GradT* grad, const float* x, int64_t count) {
  double gg[kLanes] = {}, gd[kLanes] = {}, dd[kLanes] = {};
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      l2_add(x_adv[i + l], to_float(grad[i + l]), x[i + l], gg[l], gd[l], dd[l]);
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    l2_add(x_adv[i], to_float(grad[i]), x[i], gg[0], gd[0], dd[0]);
  }
  return L2Sums{lane_sum(gg), lane_sum(gd), lane_sum(dd)};
}

template <typename GradT>
ARD_HD void l2_sample(const NormStepParams& p, const GradT* grads, int64_t sample) {
  const int64_t at = sample * p.sample_numel;
  float* x_adv = p.x_adv + at;
  const GradT* grad = grads + at;
  const float* x = p.x + at;
  const float step = p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size;
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const L2Sums sums = l2_sums(x_adv, grad, x, p.sample_numel);
  const L2Step by = l2_step(sums, p.direction * step, eps);
  const float lower = p.lower, upper = p.upper;
#pragma GCC ivdep
  for (int64_t i = 0; i < p.sample_numel; ++i) {
    x_adv[i] = l2_update(x_adv[i], to_float(grad[i]), x[i], by, lower, upper);
  }
}

ARD_CLONES void l2_dtype(const NormStepParams& p, const float* grads, int64_t sample) {
  l2_sample(p, grads, sample);
}
ARD_CLONES void l2_dtype(const NormStepParams& p, const f16* grads, int64_t sample) {
  l2_sample(p, grads, sample);
}
ARD_CLONES void l2_dtype(const NormStepParams& p, const bf16* grads, int64_t sample) {
  l2_sample(p, grads, sample);
}

template <typename GradT>
ARD_HD double l1_norm(const GradT* grad, int64_t count) {
  double sums[kLanes] = {};
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      sums[l] += double(magnitude(finite_gradient(to_float(grad[i + l]))));
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    sums[0] += double(magnitude(finite_gradient(to_float(grad[i]))));
  }
  return lane_sum(sums);
}

template <typename GradT>
ARD_HD void mifgsm_sample(const NormStepParams& p, const GradT* grads, int64_t sample) {
  const int64_t at = sample * p.sample_numel;
  float* x_adv = p.x_adv + at;
  float* momentum = p.momentum + at;
  const GradT* grad = grads + at;
  const float* x = p.x + at;
  const float step =
      p.direction * (p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size);
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const NormedStep by = normed_step(l1_norm(grad, p.sample_numel), 1.0);
  const float decay = p.decay, lower = p.lower, upper = p.upper;
#pragma GCC ivdep
  for (int64_t i = 0; i < p.sample_numel; ++i) {
    const float m = mifgsm_momentum(momentum[i], to_float(grad[i]), decay, by);
    momentum[i] = m;
    x_adv[i] = pgd_linf_update(x_adv[i], m, x[i], step, eps, lower, upper);
  }
  to_levels(x_adv, p.sample_numel, p.levels);
}

ARD_CLONES void mifgsm_dtype(const NormStepParams& p, const float* grads, int64_t sample) {
  mifgsm_sample(p, grads, sample);
}
ARD_CLONES void mifgsm_dtype(const NormStepParams& p, const f16* grads, int64_t sample) {
  mifgsm_sample(p, grads, sample);
}
ARD_CLONES void mifgsm_dtype(const NormStepParams& p, const bf16* grads, int64_t sample) {
  mifgsm_sample(p, grads, sample);
}

}  // namespace

void pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  for_dtype(grad_dtype, [&](auto example) {
    const auto* grads = static_cast<const decltype(example)*>(p.grad);
    for (int64_t sample = begin; sample < end; ++sample) l2_dtype(p, grads, sample);
  });
}

void mifgsm_step(const NormStepParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  for_dtype(grad_dtype, [&](auto example) {
    const auto* grads = static_cast<const decltype(example)*>(p.grad);
    for (int64_t sample = begin; sample < end; ++sample) mifgsm_dtype(p, grads, sample);
  });
}

}  // namespace ard::cpu
