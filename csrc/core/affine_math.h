// One element of affine_relu and of its backward pass.
#pragma once

#include "core/affine_params.h"
#include "core/half.h"

namespace ard {

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

}  // namespace ard
