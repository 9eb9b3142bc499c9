// What the floating-point instructions share: rounding modes, flushing, NaN, 16-bit formats.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "emulator/instruction.h"

namespace ard::emulator {

// Sets the processor's rounding for a scope. Operands and results are in memory, which the barriers
// keep in place.
class RoundingScope {
 public:
  explicit RoundingScope(Rounding rounding) : old_(0) {
    if (rounding <= Rounding::nearest) return;
    constexpr unsigned kBits[] = {0, 0, 0x6000, 0x2000, 0x4000};
    old_ = _mm_getcsr();
    _mm_setcsr((old_ & ~0x6000u) | kBits[static_cast<unsigned>(rounding)]);
    asm volatile("" ::: "memory");
  }
  ~RoundingScope() {
    if (!old_) return;
    asm volatile("" ::: "memory");
    _mm_setcsr(old_);
  }
  RoundingScope(const RoundingScope&) = delete;
  RoundingScope& operator=(const RoundingScope&) = delete;

 private:
  unsigned old_;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline double double_of(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// .ftz: subnormal numbers become zeros of their sign.
template <bool kFlush>
inline float flushed(float value) {
  if constexpr (!kFlush) return value;
  const uint32_t bits = bits_of(value);
  return float_of(bits & 0x7f800000u ? bits : bits & 0x80000000u);
}
template <bool>
inline double flushed(double value) {
  return value;
}
// .sat: to [0, 1], NaN and -0 to +0.
template <bool kSaturate, class T>
inline T saturated(T value) {
  if constexpr (!kSaturate) return value;
  if (!(value > T{0})) return T{0};
  return value > T{1} ? T{1} : value;
}
inline float canonical(float value) { return value != value ? float_of(kNan32) : value; }
inline double canonical(double value) { return value != value ? double_of(kNan64) : value; }

// -0 is less than +0; a NaN gives the other operand.
template <class T>
inline T minimum(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return __builtin_signbit(a) ? a : b;
  return a < b ? a : b;
}
template <class T>
inline T maximum(T a, T b) {
  if (a != a) return b;
  if (b != b) return a;
  if (a == b) return __builtin_signbit(a) ? b : a;
  return a > b ? a : b;
}

inline float from_bf16(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }
inline float from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  if (magnitude >= 0x0f800000u) return float_of(sign | magnitude | 0x7f800000u);  // infinity, NaN
  return float_of(sign |
                  bits_of(float_of(magnitude) * 0x1p112f));  // exact, also of subnormal numbers
}

// Any double in a format of 16 bits.
struct HalfFormat {
  int mantissa_bits, min_exponent;
  uint16_t infinity;
};
constexpr HalfFormat kF16 = {10, -14, 0x7c00};
constexpr HalfFormat kBf16 = {7, -126, 0x7f80};

inline uint16_t to_half(double value, const HalfFormat& format, Rounding rounding) {
  if (value != value) return kNan16;
  const uint64_t bits = bits_of(value);
  const bool negative = bits >> 63;
  const uint16_t sign = negative ? 0x8000 : 0;
  const int biased = static_cast<int>(bits >> 52 & 0x7ff);
  if (biased == 0x7ff) return sign | format.infinity;
  const int exponent = biased ? biased - 1023 : -1022;
  const uint64_t significand =
      (bits & ((uint64_t{1} << 52) - 1)) | (biased ? uint64_t{1} << 52 : 0);
  const int below = exponent < format.min_exponent ? format.min_exponent - exponent : 0;
  const int shift = 52 - format.mantissa_bits + below < 63 ? 52 - format.mantissa_bits + below : 63;
  uint64_t kept = significand >> shift;
  const uint64_t rest = significand & ((uint64_t{1} << shift) - 1),
                 half = uint64_t{1} << (shift - 1);
  const bool nearest = rounding <= Rounding::nearest;
  const bool away = rounding == (negative ? Rounding::down : Rounding::up);
  if (nearest ? rest > half || (rest == half && kept & 1) : away && rest) ++kept;
  // The leading bit of a normal number counts up the exponent, and so does a carry.
  const uint64_t result =
      kept +
      (below ? 0 : static_cast<uint64_t>(exponent - format.min_exponent) << format.mantissa_bits);
  if (result < format.infinity) return sign | static_cast<uint16_t>(result);
  return sign | static_cast<uint16_t>(nearest || away ? format.infinity : format.infinity - 1);
}

}  // namespace ard::emulator
