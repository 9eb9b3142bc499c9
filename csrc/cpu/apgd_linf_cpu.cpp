// The L-infinity step of Auto-PGD: one pass.
#include "core/half.h"
#include "cpu/apgd_select.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace ard::cpu {
namespace {

// Elements of a piece: its tensors stay in the first-level cache between the copies and the step.
constexpr int64_t kPiece = 1024;

struct LinfNumbers {
  float step_size, eps, momentum, one_minus_momentum, lower, upper;
};

template <typename GradT>
ARD_HD void step_stretch(float* x_prev, const float* x_adv, const GradT* grad, const float* x,
                         const LinfNumbers& n, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    x_prev[i] = apgd_linf_update(x_adv[i], to_float(grad[i]), x[i], x_prev[i], n.step_size, n.eps,
                                 n.momentum, n.one_minus_momentum, n.lower, n.upper);
  }
}

ARD_CLONES void step(float* x_prev, const float* x_adv, const float* grad, const float* x,
                     const LinfNumbers& n, int64_t count) {
  step_stretch(x_prev, x_adv, grad, x, n, count);
}

ARD_CLONES void step(float* x_prev, const float* x_adv, const f16* grad, const float* x,
                     const LinfNumbers& n, int64_t count) {
  step_stretch(x_prev, x_adv, grad, x, n, count);
}

ARD_CLONES void step(float* x_prev, const float* x_adv, const bf16* grad, const float* x,
                     const LinfNumbers& n, int64_t count) {
  step_stretch(x_prev, x_adv, grad, x, n, count);
}

template <typename GradT>
void linf_piece(const ApgdParams& p, const ApgdDecision& d, int64_t sample, int64_t at,
                int64_t count) {
  const GradT* grad = apgd_select<GradT>(p, d, at, count);
  if (!grad) return;
  const LinfNumbers n{d.record.step_size,
                      p.eps_per_sample ? p.eps_per_sample[sample] : p.eps,
                      p.momentum,
                      p.one_minus_momentum,
                      p.lower,
                      p.upper};
  step(p.x_prev + at, p.x_adv + at, grad, p.x + at, n, count);
}

}  // namespace

int64_t apgd_linf_pieces(int64_t sample_numel) {
  const int64_t pieces = (sample_numel + kPiece - 1) / kPiece;
  return pieces ? pieces : 1;  // an empty sample has its record still
}

void apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  const int64_t pieces = apgd_linf_pieces(p.sample_numel);
  while (begin < end) {
    const int64_t sample = begin / pieces;
    const ApgdDecision d = apgd_decide(p, sample);
    for (int64_t piece = begin % pieces; piece < pieces && begin < end; ++piece, ++begin) {
      if (piece == 0) apgd_store(p.state_out, p.batch, sample, d.record);
      const int64_t first = piece * kPiece, left = p.sample_numel - first;
      const int64_t count = left < kPiece ? left : kPiece;
      const int64_t at = sample * p.sample_numel + first;
      switch (grad_dtype) {
        case Dtype::f32:
          linf_piece<float>(p, d, sample, at, count);
          break;
        case Dtype::f16:
          linf_piece<f16>(p, d, sample, at, count);
          break;
        case Dtype::bf16:
          linf_piece<bf16>(p, d, sample, at, count);
          break;
      }
    }
  }
}

}  // namespace ard::cpu
