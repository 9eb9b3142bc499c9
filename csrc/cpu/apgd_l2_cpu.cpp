// The L2 step of Auto-PGD: three passes over a sample, with its norms taken in the first two.
#include "core/half.h"
#include "cpu/apgd_select.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace ard::cpu {
namespace {

template <typename GradT>
struct L2Sample {
  float* x_prev;
  const float* x_adv;
  const GradT* grad;
  const float* x;
  int64_t count;
  float step_size, eps, momentum, one_minus_momentum, lower, upper;

  // The squares of perturbation and gradient, and their product, of one element.
  ARD_HD void add(int64_t i, double& gg, double& gd, double& dd) const {
    l2_add(x_adv[i], to_float(grad[i]), x[i], gg, gd, dd);
  }

  // Leaves the perturbation where the iterate before was, and adds its square.
  ARD_HD void mix(int64_t i, const L2Step& by, double& square) const {
    const float delta = apgd_l2_delta(x_adv[i], to_float(grad[i]), x[i], x_prev[i], by, momentum,
                                      one_minus_momentum, lower, upper);
    x_prev[i] = delta;
    square += double(delta) * double(delta);
  }
};

template <typename GradT>
ARD_HD void l2_step_of(const L2Sample<GradT>& s) {
  const int64_t whole = s.count / kLanes * kLanes;
  double gg[kLanes] = {}, gd[kLanes] = {}, dd[kLanes] = {}, squares[kLanes] = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) s.add(i + l, gg[l], gd[l], dd[l]);
  }
  for (int64_t i = whole; i < s.count; ++i) s.add(i, gg[0], gd[0], dd[0]);
  const L2Step by = l2_step(L2Sums{lane_sum(gg), lane_sum(gd), lane_sum(dd)}, s.step_size, s.eps);
  for (int64_t i = 0; i < whole; i += kLanes) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) s.mix(i + l, by, squares[l]);
  }
  for (int64_t i = whole; i < s.count; ++i) s.mix(i, by, squares[0]);
  const float shrink = l2_shrink(sqrt_f64(lane_sum(squares)), s.eps);
#pragma GCC ivdep
  for (int64_t i = 0; i < s.count; ++i) {
    s.x_prev[i] = apgd_l2_finish(s.x_prev[i], s.x[i], shrink, s.lower, s.upper);
  }
}

ARD_CLONES void l2_step_dtype(const L2Sample<float>& s) { l2_step_of(s); }
ARD_CLONES void l2_step_dtype(const L2Sample<f16>& s) { l2_step_of(s); }
ARD_CLONES void l2_step_dtype(const L2Sample<bf16>& s) { l2_step_of(s); }

template <typename GradT>
void l2_sample(const ApgdParams& p, int64_t sample) {
  const ApgdDecision d = apgd_decide(p, sample);
  apgd_store(p.state_out, p.batch, sample, d.record);
  const int64_t at = sample * p.sample_numel;
  const GradT* grad = apgd_select<GradT>(p, d, at, p.sample_numel);
  if (!grad) return;
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  l2_step_dtype(L2Sample<GradT>{p.x_prev + at, p.x_adv + at, grad, p.x + at, p.sample_numel,
                                d.record.step_size, eps, p.momentum, p.one_minus_momentum, p.lower,
                                p.upper});
}

}  // namespace

void apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  for (int64_t sample = begin; sample < end; ++sample) {
    switch (grad_dtype) {
      case Dtype::f32:
        l2_sample<float>(p, sample);
        break;
      case Dtype::f16:
        l2_sample<f16>(p, sample);
        break;
      case Dtype::bf16:
        l2_sample<bf16>(p, sample);
        break;
    }
  }
}

}  // namespace ard::cpu
