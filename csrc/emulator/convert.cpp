// cvt: between integers, between floats, and from one to the other.
#include <cmath>
#include <limits>

#include "emulator/decoder.h"
#include "emulator/floats.h"
#include "emulator/machine.h"

namespace ard::emulator {
namespace {

constexpr u8 kSaturates = 1, kIntegral = 2;  // mode

template <class Format>
constexpr bool kIsHalf = std::is_same_v<Format, F16> || std::is_same_v<Format, Bf16>;

double integral(double value, Rounding rounding) {
  if (rounding == Rounding::zero) return std::trunc(value);
  if (rounding == Rounding::down) return std::floor(value);
  return rounding == Rounding::up ? std::ceil(value) : std::nearbyint(value);
}

template <class To, class From>
void integer_to_integer(Warp& warp, const Instruction& i) {
  const auto f = [saturates = i.mode & kSaturates](From a) {
    constexpr __int128 kLowest = std::numeric_limits<To>::min(),
                       kHighest = std::numeric_limits<To>::max();
    return To(!saturates ? a : a < kLowest ? kLowest : a > kHighest ? kHighest : a);
  };
  map<To(From)>(warp, i, f);
}

// Saturates. NaN: 0, but with 64 bits on either side the highest bit alone.
template <class To, class From>
void float_to_integer(Warp& warp, const Instruction& i) {
  constexpr To kNan =
      std::is_same_v<From, F64> || sizeof(To) == 8 ? To(u64{1} << (8 * sizeof(To) - 1)) : To(0);
  // The bounds are powers of two, which the format may round its own highest value to.
  constexpr double kAbove = 2.0 * double(u64{1} << (std::numeric_limits<To>::digits - 1));
  constexpr double kLowest = std::is_signed_v<To> ? -kAbove : 0.0;
  const auto f = [&](u64 a) {
    const double value = From::read(a), whole = integral(value, i.rounding);
    if (value != value) return kNan;
    if (whole >= kAbove) return std::numeric_limits<To>::max();
    return whole < kLowest ? std::numeric_limits<To>::min() : To(whole);
  };
  map<To(u64)>(warp, i, f);
}

template <class Value, class From>
void integer_to_float(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.rounding);
  map<Value(From)>(warp, i, [](From a) { return Value(a); });
}

template <class To, class From>
void integer_to_half(Warp& warp, const Instruction& i) {
  const RoundingScope scope(Rounding::zero);
  const auto f = [&](From a) {
    const double value = double(a);
    // Where that is inexact its last bit is set, so that the second rounding is right.
    const bool exact = __int128(value) == __int128(a);
    return To::write(exact ? value : double_of(bits_of(value) | 1), i.rounding);
  };
  map<u64(From)>(warp, i, f);
}

template <class To, class From>
void float_to_float(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.mode & kIntegral ? Rounding::none : i.rounding);
  const auto f = [&](u64 a) {
    double value = From::read(a);
    if (i.mode & kIntegral) value = std::copysign(integral(value, i.rounding), value);
    if (i.mode & kSaturates) value = saturated<true>(value);
    return To::write(value, i.rounding);
  };
  map<u64(u64)>(warp, i, f);
}

// cvt.rn.f16x2.f32 d, a, b: a above b
template <class To>
void pair_to_halves(Warp& warp, const Instruction& i) {
  const auto f = [&](float a, float b) {
    return u32(To::write(a, i.rounding) << 16 | To::write(b, i.rounding));
  };
  map<u32(float, float)>(warp, i, f);
}

// make(Tag<...>) of an integer or of a format.
template <class F>
Handler by_type(Type type, bool ftz, F make) {
  if (type == Type::f16) return make(Tag<F16>());
  if (type == Type::bf16) return make(Tag<Bf16>());
  if (type == Type::f32) return ftz ? make(Tag<F32<true>>()) : make(Tag<F32<false>>());
  if (type == Type::f64) return make(Tag<F64>());
  if (size_of(type) == 1) return type == Type::s8 ? make(Tag<s8>()) : make(Tag<u8>());
  return by_integer(type, make);
}

Handler conversion(Type to, Type from, bool ftz) {
  return by_type(to, ftz, [&](auto target) {
    return by_type(from, ftz, [&](auto source) -> Handler {
      using To = typename decltype(target)::type;
      using From = typename decltype(source)::type;
      if constexpr (std::is_integral_v<To> && std::is_integral_v<From>)
        return integer_to_integer<To, From>;
      else if constexpr (std::is_integral_v<To>)
        return float_to_integer<To, From>;
      else if constexpr (kIsHalf<To> && std::is_integral_v<From>)
        return integer_to_half<To, From>;
      else if constexpr (std::is_integral_v<From>)
        return integer_to_float<typename To::Value, From>;
      else
        return float_to_float<To, From>;
    });
  });
}

}  // namespace

bool decode_convert(Decoder& d) {
  if (d.opcode != "cvt") return false;
  const int whole = d.take_one_of({"rni", "rzi", "rmi", "rpi"});
  d.out.rounding = whole < 0 ? d.take_rounding() : Rounding(whole + 1);
  d.out.mode = u8((d.take("sat") ? kSaturates : 0) | (whole < 0 ? 0 : kIntegral));
  const bool ftz = d.take("ftz");
  const Type to = d.take_type(), from = d.take_type();
  if (to == Type::f16x2 || to == Type::bf16x2) {
    d.simple(3, from);
    if (from == Type::f32 && !d.out.mode)
      d.out.run = to == Type::f16x2 ? pair_to_halves<F16> : pair_to_halves<Bf16>;
    return true;
  }
  d.simple(2, from);
  // To an integer it must be said how.
  if (!is_float(from) || is_float(to) || whole >= 0) d.out.run = conversion(to, from, ftz);
  return true;
}

}  // namespace ard::emulator
