// Whole levels of a pixel, k / count for k = 0 ... count: what an image of 8 bits holds for a count
// of 255.
#pragma once

#include "common/math.h"

namespace ard {

struct Levels {
  float count;  // 1 to 255, or 0: pixels of any value
  float high;   // 1 / count in two parts
  float low;
};

// The upper part has 16 bits, so that its product with a byte is exact.
ARD_HD Levels pixel_levels(int64_t count) {
  if (count == 0) return Levels{};
  const double scale = 1.0 / double(count);
  const float high = bits_to_float(float_to_bits(float(scale)) & 0xffffff00u);
  return Levels{float(count), high, float(scale - double(high))};
}

// k / count as a float for a whole number k from 0 to 255, the same bits as the division has: the
// sum before its rounding is within 2^-38 of the quotient, which (unless it is a float itself)
// stays 2^-33 away from any point halfway between two floats. The first product is exact, so that a
// fused multiply-add has the same bits as well.
ARD_HD float level_value(float k, const Levels& levels) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(k, levels.high, mul_rn(k, levels.low));
#else
  return add_rn(mul_rn(k, levels.high), mul_rn(k, levels.low));
#endif
}

// The level nearest to a pixel in [0, 1], of two the even one; NaN stays NaN.
ARD_HD float to_level(float pixel, const Levels& levels) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float k = add_rn(add_rn(mul_rn(pixel, levels.count), magic), -magic);
  return level_value(k, levels);
}

}  // namespace ard
