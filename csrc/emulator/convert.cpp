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
  switch (rounding) {
    case Rounding::zero:
      return std::trunc(value);
    case Rounding::down:
      return std::floor(value);
    case Rounding::up:
      return std::ceil(value);
    default:
      return std::nearbyint(value);
  }
}

template <class To, class From>
void integer_to_integer(Warp& warp, const Instruction& i) {
  const auto f = [saturates = i.mode & kSaturates](From a, u8, u8) {
    constexpr __int128 kLowest = std::numeric_limits<To>::min(),
                       kHighest = std::numeric_limits<To>::max();
    return To(!saturates ? a : a < kLowest ? kLowest : a > kHighest ? kHighest : a);
  };
  map(warp, i, f, static_cast<To (*)(From, u8, u8)>(nullptr));
}

// Saturates. NaN: 0, but with 64 bits on either side the highest bit alone.
template <class To, class From>
void float_to_integer(Warp& warp, const Instruction& i) {
  constexpr To kNan =
      std::is_same_v<From, F64> || sizeof(To) == 8 ? To(u64{1} << (8 * sizeof(To) - 1)) : To(0);
  // The bounds are powers of two, which the format may round its own highest value to.
  constexpr double kAbove = 2.0 * double(u64{1} << (std::numeric_limits<To>::digits - 1));
  constexpr double kLowest = std::is_signed_v<To> ? -kAbove : 0.0;
  const auto f = [&](u64 a, u8, u8) {
    const double value = From::read(a), whole = integral(value, i.rounding);
    if (value != value) return kNan;
    if (whole >= kAbove) return std::numeric_limits<To>::max();
    return whole < kLowest ? std::numeric_limits<To>::min() : To(whole);
  };
  map(warp, i, f, static_cast<To (*)(u64, u8, u8)>(nullptr));
}

template <class Value, class From>
void integer_to_float(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.rounding);
  map(
      warp, i, [](From a, u8, u8) { return Value(a); },
      static_cast<Value (*)(From, u8, u8)>(nullptr));
}

template <class To, class From>
void integer_to_half(Warp& warp, const Instruction& i) {
  const RoundingScope scope(Rounding::zero);
  const auto f = [&](From a, u8, u8) {
    const double value = double(a);
    // Where that is inexact its last bit is set, so that the second rounding is right.
    const bool exact = __int128(value) == __int128(a);
    return To::write(exact ? value : double_of(bits_of(value) | 1), i.rounding);
  };
  map(warp, i, f, static_cast<u64 (*)(From, u8, u8)>(nullptr));
}

template <class To, class From>
void float_to_float(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.mode & kIntegral ? Rounding::none : i.rounding);
  const auto f = [&](u64 a, u8, u8) {
    double value = From::read(a);
    if (i.mode & kIntegral) value = std::copysign(integral(value, i.rounding), value);
    if (i.mode & kSaturates) value = saturated<true>(value);
    return To::write(value, i.rounding);
  };
  map(warp, i, f, static_cast<u64 (*)(u64, u8, u8)>(nullptr));
}

// cvt.rn.f16x2.f32 d, a, b: a above b
template <class To>
void pair_to_halves(Warp& warp, const Instruction& i) {
  const auto f = [&](float a, float b, u8) {
    return u32(To::write(a, i.rounding) << 16 | To::write(b, i.rounding));
  };
  map(warp, i, f, static_cast<u32 (*)(float, float, u8)>(nullptr));
}

// make(Tag<...>) of an integer or of a format.
template <class F>
Handler by_type(Type type, bool ftz, F make) {
  switch (type) {
    case Type::b8:
    case Type::u8:
      return make(Tag<u8>());
    case Type::s8:
      return make(Tag<s8>());
    case Type::f16:
      return make(Tag<F16>());
    case Type::bf16:
      return make(Tag<Bf16>());
    case Type::f32:
      return ftz ? make(Tag<F32<true>>()) : make(Tag<F32<false>>());
    case Type::f64:
      return make(Tag<F64>());
    default:
      return by_integer(type, make);
  }
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
