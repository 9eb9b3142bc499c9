// IEEE binary16 and bfloat16 as plain bit patterns: the same layout as torch.float16 and
// torch.bfloat16, without a header of torch or CUDA. Arithmetic is always done in float.
#pragma once

#include "common/math.h"

namespace ard {

struct f16 {
  uint16_t bits;
};

struct bf16 {
  uint16_t bits;
};

ARD_HD float to_float(float value) { return value; }

ARD_HD float to_float(const bf16& value) { return bits_to_float(uint32_t(value.bits) << 16); }

ARD_HD float to_float(const f16& value) {
#if defined(__CUDA_ARCH__)
  float out;
  asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(value.bits));
  return out;
#else
  // Branch-free, so that loops over it vectorise. Shifting the 15 magnitude bits into place leaves
  // the exponent 112 too small; multiplying by 2^112 repairs it and normalises subnormals exactly.
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  const float scaled = bits_to_float(magnitude) * 0x1p112f;
  const uint32_t inf_or_nan = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  return bits_to_float(float_to_bits(scaled) | inf_or_nan | sign);
#endif
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN, of which bits only the CPU's bfloat16
// keeps.
template <typename T>
ARD_HD T from_float(float value);

template <>
ARD_HD float from_float<float>(float value) {
  return value;
}

template <>
ARD_HD bf16 from_float<bf16>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  bf16 out;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  return bf16{uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded)};
#endif
}

template <>
ARD_HD f16 from_float<f16>(float value) {
#if defined(__CUDA_ARCH__)
  f16 out;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
  return out;
#else
  const uint32_t bits = float_to_bits(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  // Normal results: rebias the exponent by -112 and round at bit 13. Overflow carries into
  // infinity.
  const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
  // Subnormal results: adding 0.5 puts the half's last bit at the float's last bit, rounding once.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f);
  uint32_t out = magnitude < 0x38800000u ? subnormal : normal;
  out = magnitude >= 0x477ff000u ? 0x7c00u : out;
  out = magnitude > 0x7f800000u ? 0x7e00u : out;
  return f16{uint16_t(out | sign)};
#endif
}

// Of gradients and logits; pixels are always float.
enum class Dtype { f32, f16, bf16 };

// Calls body with a value of the C++ type of the dtype.
template <typename Body>
void for_dtype(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::f32:
      return body(float{});
    case Dtype::f16:
      return body(f16{});
    case Dtype::bf16:
      return body(bf16{});
  }
}

}  // namespace ard
