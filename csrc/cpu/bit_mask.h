// The mask of rectified values, 16 bits at a time. The compiler finds no vector form for gathering
// bits, and SSE2, which every x86-64 has, has an instruction for it.
#pragma once

#include "core/affine_math.h"
#include "cpu/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ard::cpu {

constexpr int kMaskBits = 16;

#if defined(__SSE2__)

ARD_HD __m128i zeros_of(const float* y) {  // of 4
  return _mm_castps_si128(_mm_cmpeq_ps(_mm_loadu_ps(y), _mm_setzero_ps()));
}

ARD_HD __m128i zeros_of(const void* y) {  // of 8 of 16 bits
  const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(y));
  return _mm_cmpeq_epi16(_mm_add_epi16(bits, bits), _mm_setzero_si128());
}

ARD_HD uint32_t pass_bits(const float* y) {
  const __m128i low = _mm_packs_epi32(zeros_of(y), zeros_of(y + 4));
  const __m128i high = _mm_packs_epi32(zeros_of(y + 8), zeros_of(y + 12));
  return ~uint32_t(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
}

template <typename Half>
ARD_HD uint32_t pass_bits(const Half* y) {
  const void* high = y + 8;
  return ~uint32_t(
      _mm_movemask_epi8(_mm_packs_epi16(zeros_of(static_cast<const void*>(y)), zeros_of(high))));
}

#else

template <typename T>
ARD_HD uint32_t pass_bits(const T* y) {
  uint32_t bits = 0;
  for (int l = 0; l < kMaskBits; ++l) bits |= passes(y[l]) << l;
  return bits;
}

#endif

// Bit l of the result for y[l]; the bytes of `count` values, of which the last may be part.
// `ahead(i)` is called for every 16 values: there is time to ask memory for what comes next.
template <typename T, typename Ahead>
ARD_HD void write_mask(const T* y, int64_t count, uint8_t* mask, const Ahead& ahead) {
  int64_t i = 0;
  for (; i + kMaskBits <= count; i += kMaskBits) {
    const uint32_t bits = pass_bits(y + i);
    const uint8_t bytes[] = {uint8_t(bits), uint8_t(bits >> 8)};
    memcpy(mask + i / 8, bytes, 2);
    ahead(i);
  }
  for (; i < count; i += 8) {
    uint32_t bits = 0;
    for (int64_t l = 0; l < 8 && i + l < count; ++l) bits |= passes(y[i + l]) << l;
    mask[i / 8] = uint8_t(bits);
  }
}

// out = grad where the bit is set and 0 elsewhere, in float.
template <typename T>
ARD_HD void read_mask(const uint8_t* mask, const T* grad, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kMaskBits <= count; i += kMaskBits) {
    const uint32_t bits = mask[i / 8] | uint32_t(mask[i / 8 + 1]) << 8;
    ARD_LANES for (int l = 0; l < kMaskBits; ++l) {
      out[i + l] = where_bit(to_float(grad[i + l]), (bits >> l) & 1u);
    }
  }
  for (; i < count; ++i) out[i] = where_bit(to_float(grad[i]), (mask[i / 8] >> (i % 8)) & 1u);
}

}  // namespace ard::cpu
