// One element of affine_relu and of its backward pass.
#pragma once

#include "common/half.h"

namespace ard {

// All tensors but the coefficients share one memory order, in which the channel of element i is
// i / inner % channels.
struct AffineReluParams {
  const void* x;         // [numel] float, f16 or bf16
  const void* residual;  // [numel] of the same type, or null
  const float* scale;    // [channels], or null
  const float* shift;    // [channels], or null
  void* y;               // [numel]; may be x
  uint8_t* mask;         // [ceil(numel / 8)], or null; only with relu
  int64_t numel;
  int64_t channels;
  int64_t inner;  // elements of one channel in a row: 1 for channels_last
  bool relu;
};

struct AffineReluBackwardParams {
  const void* grad;     // [numel] float, f16 or bf16
  const uint8_t* mask;  // [ceil(numel / 8)], or null: every element passes
  const float* scale;   // [channels], or null
  void* out;            // [numel]
  int64_t numel;
  int64_t channels;
  int64_t inner;
};

// What stands for a coefficient or a residual that is not given: no value changes by a product with
// 1 or a sum with -0, the sign of a zero included.
constexpr float kNoScale = 1.0f;
constexpr float kNoAddend = -0.0f;

ARD_HD float relu_floor(bool relu) { return relu ? 0.0f : -INFINITY; }

// max(floor, x * scale + shift + residual); a NaN stays one.
ARD_HD float affine_relu_element(float x, float scale, float shift, float residual, float floor) {
  return max_or_second(floor, add_rn(add_rn(mul_rn(x, scale), shift), residual));
}

// The mask's bit of a rectified value: whether it is not <= 0. One that is neither zero is positive
// or NaN, so the exponent and fraction decide.
ARD_HD uint32_t passes(float y) { return (float_to_bits(y) & 0x7fffffffu) != 0 ? 1 : 0; }
ARD_HD uint32_t passes(f16 y) { return (y.bits & 0x7fffu) != 0 ? 1 : 0; }
ARD_HD uint32_t passes(bf16 y) { return (y.bits & 0x7fffu) != 0 ? 1 : 0; }

// The gradient where the bit is 1, +0 where it is 0; an `and`, since a condition here kept gcc from
// vectorising loops around it.
ARD_HD float where_bit(float grad, uint32_t bit) {
  return bits_to_float(float_to_bits(grad) & (0u - bit));
}

namespace cpu {

// Parts begin at multiples of this, so that no two threads write to one byte of the mask.
constexpr int64_t kAffineBlock = 1024;

void affine_relu(const AffineReluParams& p, Dtype dtype, int64_t begin, int64_t end);

void affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, int64_t begin,
                          int64_t end);

}  // namespace cpu

namespace cuda {

void launch_affine_relu(const AffineReluParams& p, Dtype dtype, Stream stream);
void launch_affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, Stream stream);

}  // namespace cuda

}  // namespace ard
