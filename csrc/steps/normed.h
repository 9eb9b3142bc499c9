// Steps along a gradient divided by its norm: L2 PGD and MI-FGSM.
//
// The sums are kept in double, where the square of any float is neither zero nor infinite, so that
// one pass over a sample gives them all, with no scaling by the largest entry first.
#pragma once

#include "common/half.h"
#include "common/levels.h"

namespace ard {

// B batch, E elements per sample; samples follow one another in memory.
struct NormStepParams {
  float* x_adv;                       // [B, E] updated in place
  const void* grad;                   // [B, E] float, f16 or bf16, memory order of x_adv
  const float* x;                     // [B, E] memory order of x_adv
  float* momentum;                    // [B, E] updated in place; MI-FGSM only
  const float* step_size_per_sample;  // [B] or null
  const float* eps_per_sample;        // [B] or null
  int64_t batch;
  int64_t sample_numel;  // E
  float step_size;       // used when step_size_per_sample is null
  float eps;             // used when eps_per_sample is null
  float decay;           // of the momentum; MI-FGSM only
  float direction;       // +1 ascends the loss, -1 descends it (targeted)
  float lower, upper;    // pixel bounds
  Levels levels;         // of the result; MI-FGSM only
};

constexpr float kLargestFloat = 3.402823466e+38f;

// What a gradient entry counts as: NaN as 0 and an infinity as the largest float, so that a sample
// with a few overflowed entries still moves. On the bits: comparisons of floats keep gcc from
// vectorising what follows.
ARD_HD float finite_gradient(float grad) {
  const uint32_t bits = float_to_bits(grad);
  const int32_t size = int32_t(bits & 0x7fffffffu);
  const int32_t finite = size < 0x7f800000 ? size : 0x7f7fffff;
  const int32_t number = size > 0x7f800000 ? 0 : finite;
  return bits_to_float((bits & 0x80000000u) | uint32_t(number));
}

// A power of two that brings a norm near 1, and with it the entries below it, without overflow.
ARD_HD float power_of_two_against(double norm) {
  const float rounded = norm < double(kLargestFloat) ? float(norm) : kLargestFloat;
  const int32_t exponent = 254 - int32_t(float_to_bits(rounded) >> 23);
  return bits_to_float(uint32_t(exponent < 1 ? 1 : exponent > 254 ? 254 : exponent) << 23);
}

// Multiplication by factor / norm in two float factors, both normal numbers wherever norm is the
// norm of a float gradient: grad * scale * step. A zero norm gives a zero step.
struct NormedStep {
  float scale;
  float step;
};

ARD_HD NormedStep normed_step(double norm, double factor) {
  const float scale = power_of_two_against(norm);
  return NormedStep{scale, norm > 0.0 ? float(factor / (norm * double(scale))) : 0.0f};
}

ARD_HD float normed(float grad, const NormedStep& by) {
  return mul_rn(mul_rn(finite_gradient(grad), by.scale), by.step);
}

// The largest float that is not above a positive double.
ARD_HD float round_down(double value) {
  const float nearest = float(value);
  return double(nearest) > value ? bits_to_float(float_to_bits(nearest) - 1u) : nearest;
}

// x + delta, rounded towards x: the distance from x does not grow by the rounding, so a point on
// the surface of a ball around x stays in it, however many pixels there are.
ARD_HD float add_towards(float x, float delta) {
  const float sum = add_rn(x, delta);
  const float moved = add_rn(sum, -x);
  // One float nearer to x. A sum of zero is exact and needs none.
  const bool shrinks = (sum > x) == (sum > 0.0f);
  const uint32_t bits = float_to_bits(sum);
  const float nearer = bits_to_float(shrinks ? bits - 1u : bits + 1u);
  return magnitude(moved) > magnitude(delta) ? nearer : sum;
}

// Of one sample, with g the gradient and d = x_adv - x.
struct L2Sums {
  double gg, gd, dd;
};

// One element.
ARD_HD void l2_add(float x_adv, float grad, float x, double& gg, double& gd, double& dd) {
  const double g = double(finite_gradient(grad));
  const double d = double(add_rn(x_adv, -x));
  gg += g * g;
  gd += g * d;
  dd += d * d;
}

struct L2Step {
  NormedStep move;
  float shrink;  // onto the ball: 1 for a point within
};

// What brings a perturbation of that norm onto the ball.
ARD_HD float l2_shrink(double norm, float eps) {
  return norm <= double(eps) ? 1.0f : round_down(double(eps) / norm);
}

// The norm of the stepped point's distance comes from the sums, |d + s g|^2 = dd + 2 s gd + s^2 gg,
// so that nobody has to compute that point twice. A NaN pixel makes it NaN, as in torch.
ARD_HD L2Step l2_step(const L2Sums& sums, float signed_step, float eps) {
  L2Step out;
  out.move = normed_step(sqrt_f64(sums.gg), double(signed_step));
  const double s = double(out.move.scale) * double(out.move.step);
  const double square = sums.dd + s * (2.0 * sums.gd + s * sums.gg);
  out.shrink = l2_shrink(sqrt_f64(square < 0.0 ? 0.0 : square), eps);
  return out;
}

ARD_HD float l2_update(float x_adv, float grad, float x, const L2Step& by, float lower,
                       float upper) {
  // The differences first: a step rounded to the spacing of the pixels would have another length.
  const float delta = add_rn(add_rn(x_adv, -x), normed(grad, by.move));
  return clamp_nan(add_towards(x, mul_rn(by.shrink, delta)), lower, upper);
}

// decay * momentum + g / |g|_1, the accumulated gradient of Dong et al. 2018, equation 6.
ARD_HD float mifgsm_momentum(float momentum, float grad, float decay, const NormedStep& by) {
  return add_rn(mul_rn(decay, momentum), normed(grad, by));
}

namespace cpu {

// Samples [begin, end).
void pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, int64_t begin, int64_t end);
void mifgsm_step(const NormStepParams& p, Dtype grad_dtype, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

void launch_pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, Stream stream);
void launch_mifgsm_step(const NormStepParams& p, Dtype grad_dtype, Stream stream);

}  // namespace cuda

}  // namespace ard
