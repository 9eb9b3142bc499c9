// What the floating-point instructions share: rounding modes, flushing, NaN, formats.
#pragma once

#include <immintrin.h>

#include "emulator/machine.h"

namespace ard::emulator {

// The bits of NaN that arithmetic gives.
constexpr u32 kNan32 = 0x7fffffffu;
constexpr u64 kNan64 = 0xfff8000000000000u;
constexpr u16 kNan16 = 0x7fffu;

// Sets the processor's rounding for a scope. Operands and results are in memory, which the barriers
// keep in place.
class RoundingScope {
 public:
  explicit RoundingScope(Rounding rounding) {
    if (rounding <= Rounding::nearest) return;
    constexpr unsigned kBits[] = {0, 0, 0x6000, 0x2000, 0x4000};
    old_ = _mm_getcsr();
    _mm_setcsr((old_ & ~0x6000u) | kBits[unsigned(rounding)]);
    asm volatile("" ::: "memory");
  }
  ~RoundingScope() {
    if (!old_) return;
    asm volatile("" ::: "memory");
    _mm_setcsr(old_);
  }

 private:
  unsigned old_ = 0;
};

inline u32 bits_of(float value) {
  u32 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline u64 bits_of(double value) {
  u64 bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(u32 bits) { return get<float>(bits); }
inline double double_of(u64 bits) { return get<double>(bits); }

// .ftz: subnormal numbers become zeros of their sign.
template <bool kFlush>
inline float flushed(float value) {
  if constexpr (!kFlush) return value;
  return bits_of(value) & 0x7f800000u ? value : float_of(bits_of(value) & 0x80000000u);
}
template <bool>
inline double flushed(double value) {
  return value;
}
// .sat: to [0, 1], NaN and -0 to +0.
template <bool kSaturate, class T>
inline T saturated(T value) {
  if constexpr (!kSaturate) return value;
  if (!(value > T(0))) return T(0);
  return value > T(1) ? T(1) : value;
}
inline float canonical(float value) { return value != value ? float_of(kNan32) : value; }
inline double canonical(double value) { return value != value ? double_of(kNan64) : value; }

// Any double in a format of 16 bits.
inline u16 to_half(double value, int mantissa_bits, int lowest_exponent, u16 infinity,
                   Rounding rounding) {
  if (value != value) return kNan16;
  const u64 bits = bits_of(value);
  const bool negative = bits >> 63;
  const u16 sign = negative ? 0x8000 : 0;
  const int biased = int(bits >> 52 & 0x7ff), exponent = biased ? biased - 1023 : -1022;
  if (biased == 0x7ff) return sign | infinity;
  const u64 significand = (bits & ((u64{1} << 52) - 1)) | (biased ? u64{1} << 52 : 0);
  const int below = exponent < lowest_exponent ? lowest_exponent - exponent : 0;  // subnormal
  const int shift = 52 - mantissa_bits + below < 63 ? 52 - mantissa_bits + below : 63;
  const u64 kept = significand >> shift, rest = significand & ((u64{1} << shift) - 1),
            half = u64{1} << (shift - 1);
  const bool nearest = rounding <= Rounding::nearest,
             away = rounding == (negative ? Rounding::down : Rounding::up);
  const bool up = nearest ? rest > half || (rest == half && kept & 1) : away && rest;
  // The leading bit of a normal number counts up the exponent, and so does a carry.
  const u64 result = kept + up + (below ? 0 : u64(exponent - lowest_exponent) << mantissa_bits);
  return sign | u16(result < infinity ? result : nearest || away ? infinity : infinity - 1);
}

// How a register holds a value, and what it is computed as.
struct F16 {
  using Value = float;
  static float read(u64 slot) {
    const u32 sign = u32(slot & 0x8000) << 16, magnitude = u32(slot & 0x7fff) << 13;
    if (magnitude >= 0x0f800000u) return float_of(sign | magnitude | 0x7f800000u);  // infinity, NaN
    return float_of(sign |
                    bits_of(float_of(magnitude) * 0x1p112f));  // exact, of subnormal numbers too
  }
  static u64 write(double value, Rounding rounding) {
    return to_half(value, 10, -14, 0x7c00, rounding);
  }
};
struct Bf16 {
  using Value = float;
  static float read(u64 slot) { return float_of(u32(slot & 0xffff) << 16); }
  static u64 write(double value, Rounding rounding) {
    return to_half(value, 7, -126, 0x7f80, rounding);
  }
};
template <bool kFlush>
struct F32 {  // a RoundingScope holds where it is written
  using Value = float;
  static float read(u64 slot) { return flushed<kFlush>(get<float>(slot)); }
  static u64 write(double value, Rounding) {
    return bits_of(canonical(flushed<kFlush>(float(value))));
  }
};
struct F64 {
  using Value = double;
  static double read(u64 slot) { return get<double>(slot); }
  static u64 write(double value, Rounding) { return bits_of(canonical(value)); }
};
template <class T>
struct Integer {
  using Value = T;
  static T read(u64 slot) { return get<T>(slot); }
};

}  // namespace ard::emulator
