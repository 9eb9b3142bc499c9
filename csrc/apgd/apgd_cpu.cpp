#include "apgd/apgd.h"

#include "common/simd.h"

namespace ard::cpu {
namespace {

template <typename T>
void copy_elements(T* to, const T* from, int64_t count) {
  if (count > 0) std::memcpy(to, from, size_t(count) * sizeof(T));  // else perhaps from null
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

// The L-infinity step: one pass.

struct LinfNumbers {
  float step_size, eps, momentum, one_minus_momentum, lower, upper;
};

template <typename GradT>
ARD_HD void linf_step_stretch(float* x_prev, const float* x_adv, const GradT* grad, const float* x,
                              const LinfNumbers& n, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    x_prev[i] = apgd_linf_update(x_adv[i], to_float(grad[i]), x[i], x_prev[i], n.step_size, n.eps,
                                 n.momentum, n.one_minus_momentum, n.lower, n.upper);
  }
}

ARD_CLONES void linf_step(float* x_prev, const float* x_adv, const float* grad, const float* x,
                          const LinfNumbers& n, int64_t count) {
  linf_step_stretch(x_prev, x_adv, grad, x, n, count);
}

ARD_CLONES void linf_step(float* x_prev, const float* x_adv, const f16* grad, const float* x,
                          const LinfNumbers& n, int64_t count) {
  linf_step_stretch(x_prev, x_adv, grad, x, n, count);
}

ARD_CLONES void linf_step(float* x_prev, const float* x_adv, const bf16* grad, const float* x,
                          const LinfNumbers& n, int64_t count) {
  linf_step_stretch(x_prev, x_adv, grad, x, n, count);
}

template <typename GradT>
void linf_piece(const ApgdParams& p, const ApgdDecision& d, int64_t sample, int64_t at,
                int64_t count) {
  const GradT* grad = apgd_select<GradT>(p, d, at, count);
  if (!grad) return;
  const LinfNumbers n{apgd_step_size(p, d),
                      p.eps_per_sample ? p.eps_per_sample[sample] : p.eps,
                      p.momentum,
                      p.one_minus_momentum,
                      p.lower,
                      p.upper};
  linf_step(p.x_prev + at, p.x_adv + at, grad, p.x + at, n, count);
  to_levels(p.x_prev + at, count, p.levels);
}

// The L2 step: three passes over a sample, with its norms taken in the first two.

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

void apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  const int64_t pieces = apgd_linf_pieces(p.sample_numel);
  while (begin < end) {
    const int64_t sample = begin / pieces;
    const ApgdDecision d = apgd_decide(p, sample);
    for (int64_t piece = begin % pieces; piece < pieces && begin < end; ++piece, ++begin) {
      if (piece == 0) apgd_store(p.state_out, p.batch, sample, d.record);
      const int64_t first = piece * kApgdPiece, left = p.sample_numel - first;
      const int64_t count = left < kApgdPiece ? left : kApgdPiece;
      const int64_t at = sample * p.sample_numel + first;
      for_dtype(grad_dtype,
                [&](auto example) { linf_piece<decltype(example)>(p, d, sample, at, count); });
    }
  }
}

void apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  for_dtype(grad_dtype, [&](auto example) {
    for (int64_t sample = begin; sample < end; ++sample) l2_sample<decltype(example)>(p, sample);
  });
}

}  // namespace ard::cpu
