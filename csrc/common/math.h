// Scalar primitives. Where results must have the same bits on CPU and GPU (random numbers, the PGD
// step) the code uses only correctly rounded operations through mul_rn/add_rn, which no compiler
// may contract to a fused multiply-add.
#pragma once

#include "common/config.h"

namespace ard {

ARD_HD uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

ARD_HD float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

// Host code is compiled with -ffp-contract=off, which gives the plain operators the same meaning;
// but see losses/fused.h.
#if defined(ARD_MAY_FUSE)
float mul_rn(float, float) = delete;
#else
ARD_HD float mul_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
#endif

ARD_HD float add_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// The exact rounding error of difference = a - b (Knuth's two-sum); NaN where a or b is infinite.
ARD_HD float sub_error(float a, float b, float difference) {
  const float b_seen = add_rn(a, -difference);
  const float a_seen = add_rn(difference, b_seen);
  return add_rn(add_rn(a, -a_seen), add_rn(b_seen, -b));
}

ARD_HD float div_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

ARD_HD float sqrt_rn(float a) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(a);
#else
  return __builtin_sqrtf(a);
#endif
}

ARD_HD double sqrt_f64(double a) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(a);
#else
  return __builtin_sqrt(a);
#endif
}

// The larger / smaller argument, the second one for ties and when either is NaN: one instruction on
// x86 and, unlike fmaxf, the same sign of zero everywhere.
ARD_HD float max_or_second(float a, float b) { return a > b ? a : b; }
ARD_HD float min_or_second(float a, float b) { return a < b ? a : b; }

ARD_HD float magnitude(float value) { return bits_to_float(float_to_bits(value) & 0x7fffffffu); }

ARD_HD bool is_finite(float value) { return magnitude(value) < INFINITY; }

// The power of two that brings a magnitude into [1, 2), so that multiplying by it, or by its
// inverse, is exact: from 2^-126 to 2^126, which is also that of 0; 1 for an infinity and NaN.
ARD_HD float power_of_two_to_one(float largest) {
  const int32_t exponent = int32_t(float_to_bits(largest) >> 23);
  const int32_t opposite = 254 - exponent;
  const int32_t normal = opposite < 1 ? 1 : opposite > 253 ? 253 : opposite;
  return bits_to_float(uint32_t(exponent == 255 ? 127 : normal) << 23);
}

ARD_HD bool either_nan(float a, float b) {
#if defined(__CUDACC__)
  return a != a || b != b;
#else
  return __builtin_isunordered(a, b);  // one comparison, and a form that vectorises
#endif
}

// As torch.clamp: a NaN stays NaN, and a zero at the bound keeps its sign.
ARD_HD float clamp_nan(float value, float lower, float upper) {
  return min_or_second(upper, max_or_second(lower, value));
}

// e^x for x <= 88, to 1.5e-7 of it: exactly 0 below -87 (and for -inf), NaN for NaN. The host form
// is branch-free so that loops over it vectorise, which libm's does not.
ARD_HD float exp_f32(float x) {
#if defined(__CUDA_ARCH__)
  return x < -87.0f ? 0.0f : expf(x);
#else
  // 1.5 * 2^23 + 127: adding it leaves the nearest integer n, plus 127, in the low bits.
  const float magic = 12583039.0f;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  // ln 2 in two parts; n has at most 8 bits, so that n * 0x1.62ep-1 is exact.
  const float r = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
  // Minimax fit of (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, relative error of the result 1e-7.
  float p = 8.3124773e-3f;
  p = p * r + 4.189055e-2f;
  p = p * r + 1.6667116e-1f;
  p = p * r + 0.49999229f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // Multiplying by 2^n, not adding to the exponent bits, keeps NaN a NaN.
  return x < -87.0f ? 0.0f : p * bits_to_float(float_to_bits(shifted) << 23);
#endif
}

// e^x - 1 - x for |x| <= 80 to 1e-6 of it, to 2e-7 for |x| < 0.34; branch-free too.
ARD_HD float exp_beyond_line(float x) {
  const float magic = 12583039.0f;  // as in exp_f32
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
  // Minimax fit of (e^r - 1 - r) / r^2 on |r| <= ln(2) / 2, relative error 1.3e-7.
  float p = 1.390131e-3f;
  p = p * r + 8.3632e-3f;
  p = p * r + 4.1666854e-2f;
  p = p * r + 1.6666577e-1f;
  p = p * r + 0.5f;
  const float scale = bits_to_float(float_to_bits(shifted) << 23);
  // With n = 0, r is x and the first two are 0: nothing cancels.
  return (scale - 1.0f) + (scale * r - x) + scale * (r * r * p);
}

ARD_HD float log_f32(float x) {
#if defined(__CUDA_ARCH__)
  return logf(x);
#else
  return std::log(x);
#endif
}

ARD_HD float log1p_f32(float x) {
#if defined(__CUDA_ARCH__)
  return log1pf(x);
#else
  return std::log1p(x);
#endif
}

}  // namespace ard
