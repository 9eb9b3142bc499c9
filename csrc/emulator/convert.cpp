// cvt: between integers, between floats, and from one to the other.
#include <cmath>
#include <limits>

#include "emulator/decoder.h"
#include "emulator/floats.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

// mode of an instruction
constexpr uint8_t kFtz = 1, kSat = 2, kIntegral = 4;

// Floats by their bits in a register; `Value` is what they are computed as.
struct F16 {
  using Value = float;
  static float read(uint64_t slot) { return from_f16(static_cast<uint16_t>(slot)); }
  static uint64_t write(double value, Rounding rounding) { return to_half(value, kF16, rounding); }
};
struct Bf16 {
  using Value = float;
  static float read(uint64_t slot) { return from_bf16(static_cast<uint16_t>(slot)); }
  static uint64_t write(double value, Rounding rounding) { return to_half(value, kBf16, rounding); }
};
struct F32 {  // a RoundingScope holds where these are written
  using Value = float;
  static float read(uint64_t slot) { return get<float>(slot); }
  static uint64_t write(double value, Rounding) {
    return bits_of(canonical(static_cast<float>(value)));
  }
};
struct F64 {
  using Value = double;
  static double read(uint64_t slot) { return get<double>(slot); }
  static uint64_t write(double value, Rounding) { return bits_of(canonical(value)); }
};

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

// The nearest value that there is.
template <class T>
T clamped(__int128 value) {
  const __int128 lowest = std::numeric_limits<T>::min(), highest = std::numeric_limits<T>::max();
  return static_cast<T>(value < lowest ? lowest : value > highest ? highest : value);
}

// NaN: 0, but with 64 bits on either side the highest bit alone.
template <class T, bool kFromF64>
T to_integer(double value, Rounding rounding) {
  if (value != value) {
    return kFromF64 || sizeof(T) == 8 ? static_cast<T>(uint64_t{1} << (8 * sizeof(T) - 1)) : T{0};
  }
  const double whole = integral(value, rounding);
  // The bounds are powers of two, which T itself may round away.
  const double above = std::ldexp(1.0, std::numeric_limits<T>::digits);
  const double lowest = std::numeric_limits<T>::is_signed ? -above : 0.0;
  if (whole >= above) return std::numeric_limits<T>::max();
  if (whole < lowest) return std::numeric_limits<T>::min();
  return static_cast<T>(whole);
}

template <class To, class From>
void integer_to_integer(Warp& warp, const Instruction& i) {
  if (i.mode & kSat) {
    unary<To, From>(warp, i, [](From a) { return clamped<To>(a); });
  } else {
    unary<To, From>(warp, i, [](From a) { return static_cast<To>(a); });
  }
}

template <class To, class From>
void float_to_integer(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.slot(i.operands[1]);
  uint64_t* to = warp.out(i.operands[0]);
  warp.each([&](unsigned lane) {
    typename From::Value value = From::read(a[lane]);
    if (i.mode & kFtz) value = flushed<true>(value);
    put<To>(to[lane], to_integer<To, std::is_same_v<From, F64>>(value, i.rounding));
  });
}

template <class To, class From>
void integer_to_float(Warp& warp, const Instruction& i) {
  constexpr bool kHalf = std::is_same_v<To, F16> || std::is_same_v<To, Bf16>;
  using Value = std::conditional_t<std::is_same_v<To, F32>, float, double>;
  // A 64-bit integer rounds to double first; with the lowest bit set where it was inexact, the
  // second rounding is right.
  const RoundingScope scope(kHalf ? Rounding::zero : i.rounding);
  const uint64_t* a = warp.slot(i.operands[1]);
  uint64_t* to = warp.out(i.operands[0]);
  warp.each([&](unsigned lane) {
    const From whole = get<From>(a[lane]);
    const Value value = static_cast<Value>(whole);
    if constexpr (kHalf) {
      const bool exact = static_cast<__int128>(value) == static_cast<__int128>(whole);
      to[lane] = To::write(exact ? value : double_of(bits_of(value) | 1), i.rounding);
    } else {
      put<Value>(to[lane], value);
    }
  });
}

template <class To, class From>
void float_to_float(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.mode & kIntegral ? Rounding::none : i.rounding);
  const uint64_t* a = warp.slot(i.operands[1]);
  uint64_t* to = warp.out(i.operands[0]);
  warp.each([&](unsigned lane) {
    typename From::Value source = From::read(a[lane]);
    if (i.mode & kFtz) source = flushed<true>(source);
    double value = source;
    if (i.mode & kIntegral) value = std::copysign(integral(value, i.rounding), value);
    if (i.mode & kSat) value = saturated<true>(value);
    uint64_t bits = To::write(value, i.rounding);
    if (i.mode & kFtz && std::is_same_v<To, F32>) bits = bits_of(flushed<true>(get<float>(bits)));
    to[lane] = bits;
  });
}

// cvt.rn.f16x2.f32 d, a, b: a above b
template <class To>
void pair_to_halves(Warp& warp, const Instruction& i) {
  binary<uint32_t, float, float>(warp, i, [&](float a, float b) {
    return static_cast<uint32_t>(To::write(a, i.rounding) << 16 | To::write(b, i.rounding));
  });
}

template <class F>
Handler by_float(Type type, F make) {
  switch (type) {
    case Type::f16:
      return make(Tag<F16>());
    case Type::bf16:
      return make(Tag<Bf16>());
    case Type::f32:
      return make(Tag<F32>());
    case Type::f64:
      return make(Tag<F64>());
    default:
      return nullptr;
  }
}
template <class F>
Handler by_any_integer(Type type, F make) {
  if (type == Type::u8 || type == Type::b8) return make(Tag<uint8_t>());
  if (type == Type::s8) return make(Tag<int8_t>());
  return by_integer(type, make);
}

Handler conversion(Type to, Type from) {
  const auto integer_source = [&](auto target, bool to_float) {
    return by_any_integer(from, [&](auto source) -> Handler {
      using From = typename decltype(source)::type;
      using To = typename decltype(target)::type;
      if constexpr (std::is_integral_v<To>)
        return integer_to_integer<To, From>;
      else
        return to_float ? integer_to_float<To, From> : nullptr;
    });
  };
  const auto float_source = [&](auto target) {
    return by_float(from, [&](auto source) -> Handler {
      using From = typename decltype(source)::type;
      using To = typename decltype(target)::type;
      if constexpr (std::is_integral_v<To>)
        return float_to_integer<To, From>;
      else
        return float_to_float<To, From>;
    });
  };
  const auto any_source = [&](auto target) {
    return is_float(from) ? float_source(target) : integer_source(target, is_float(to));
  };
  return is_float(to) ? by_float(to, any_source) : by_any_integer(to, any_source);
}

}  // namespace

bool decode_convert(Decoder& d) {
  if (d.opcode != "cvt") return false;
  const int whole = d.take_one_of({"rni", "rzi", "rmi", "rpi"});
  const Rounding rounding = whole < 0 ? d.take_rounding() : static_cast<Rounding>(whole + 1);
  d.out.rounding = rounding;
  d.out.mode = static_cast<uint8_t>((d.take("ftz") ? kFtz : 0) | (d.take("sat") ? kSat : 0));
  if (whole >= 0) d.out.mode |= kIntegral;
  const Type to = d.take_type(), from = d.take_type();
  if (to == Type::f16x2 || to == Type::bf16x2) {
    d.simple(3, from);
    if (from == Type::f32 && whole < 0 && !d.out.mode) {
      d.out.run = to == Type::f16x2 ? pair_to_halves<F16> : pair_to_halves<Bf16>;
    }
    return true;
  }
  d.simple(2, from);
  if (is_float(from) && !is_float(to) && whole < 0) return true;  // these must say how
  d.out.run = conversion(to, from);
  return true;
}

}  // namespace ard::emulator
