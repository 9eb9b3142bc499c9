// setp: a comparison, and what it makes of another predicate. Also testp.
#include <cmath>

#include "emulator/decoder.h"
#include "emulator/floats.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

enum class Combine : uint8_t { none, conjunction, disjunction, difference };

bool combined(Combine how, bool result, bool other) {
  switch (how) {
    case Combine::conjunction:
      return result && other;
    case Combine::disjunction:
      return result || other;
    case Combine::difference:
      return result != other;
    default:
      return result;
  }
}

// Operands: result, its inverse or none, a, b, another predicate or none. Mode: Combine, + 4 if
// that one is negated.
template <class T, class F>
inline __attribute__((always_inline)) void compare(Warp& warp, const Instruction& i, F test) {
  const uint64_t *a = warp.slot(i.operands[2]), *b = warp.slot(i.operands[3]);
  uint64_t* to = warp.out(i.operands[0]);
  const Combine how = static_cast<Combine>(i.mode & 3);
  if (how == Combine::none && i.operands[1] == kNoOperand) {
    warp.each([&](unsigned lane) { to[lane] = test(get<T>(a[lane]), get<T>(b[lane])); });
    return;
  }
  warp.each([&](unsigned lane) {
    const bool result = test(get<T>(a[lane]), get<T>(b[lane]));
    const bool other = how != Combine::none && (warp.slot(i.operands[4])[lane] & 1) != i.mode >> 2;
    to[lane] = combined(how, result, other);
    if (i.operands[1] != kNoOperand) warp.out(i.operands[1])[lane] = combined(how, !result, other);
  });
}

struct Equal {
  template <class T>
  static bool of(T a, T b) {
    return a == b;
  }
};
struct Less {
  template <class T>
  static bool of(T a, T b) {
    return a < b;
  }
};
struct LessEqual {
  template <class T>
  static bool of(T a, T b) {
    return a <= b;
  }
};
struct Number {  // no NaN
  template <class T>
  static bool of(T a, T b) {
    return a == a && b == b;
  }
};

template <class Test, bool kInverted>
Handler of_integers(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      compare<T>(warp, i, [](T a, T b) { return Test::of(a, b) != kInverted; });
    };
  });
}

// kNan: what a comparison with NaN gives.
template <class T, class Test, bool kInverted, bool kNan, bool kFlush>
void compare_floats(Warp& warp, const Instruction& i) {
  compare<T>(warp, i, [](T a, T b) {
    if (a != a || b != b) return kNan;
    return Test::of(flushed<kFlush>(a), flushed<kFlush>(b)) != kInverted;
  });
}
template <bool kBfloat, class Test, bool kInverted, bool kNan>
void compare_halves(Warp& warp, const Instruction& i) {
  compare<uint16_t>(warp, i, [](uint16_t x, uint16_t y) {
    const float a = kBfloat ? from_bf16(x) : from_f16(x), b = kBfloat ? from_bf16(y) : from_f16(y);
    if (a != a || b != b) return kNan;
    return Test::of(a, b) != kInverted;
  });
}
template <class Test, bool kInverted, bool kNan>
Handler of_floats(Type type, bool ftz) {
  switch (type) {
    case Type::f32:
      return ftz ? compare_floats<float, Test, kInverted, kNan, true>
                 : compare_floats<float, Test, kInverted, kNan, false>;
    case Type::f64:
      return compare_floats<double, Test, kInverted, kNan, false>;
    case Type::f16:
      return compare_halves<false, Test, kInverted, kNan>;
    case Type::bf16:
      return compare_halves<true, Test, kInverted, kNan>;
    default:
      return nullptr;
  }
}

// Ordered comparisons are false with NaN, those with a u behind are true. a > b is b < a with the
// operands exchanged.
constexpr struct {
  std::string_view name;
  bool exchanged;
  Handler (*integers)(Type);
  Handler (*ordered)(Type, bool);
  Handler (*unordered)(Type, bool);
} kComparisons[] = {
    {"eq", false, of_integers<Equal, false>, of_floats<Equal, false, false>,
     of_floats<Equal, false, true>},
    {"ne", false, of_integers<Equal, true>, of_floats<Equal, true, false>,
     of_floats<Equal, true, true>},
    {"lt", false, of_integers<Less, false>, of_floats<Less, false, false>,
     of_floats<Less, false, true>},
    {"le", false, of_integers<LessEqual, false>, of_floats<LessEqual, false, false>,
     of_floats<LessEqual, false, true>},
    {"gt", true, of_integers<Less, false>, of_floats<Less, false, false>,
     of_floats<Less, false, true>},
    {"ge", true, of_integers<LessEqual, false>, of_floats<LessEqual, false, false>,
     of_floats<LessEqual, false, true>},
};

Type unsigned_of(Type type) {
  switch (type) {
    case Type::s16:
      return Type::u16;
    case Type::s32:
      return Type::u32;
    case Type::s64:
      return Type::u64;
    default:
      return type;
  }
}

Handler comparison(Decoder& d, Type type, bool* exchanged) {
  const bool ftz = is_float(type) && d.take("ftz");
  if (d.take("num")) return of_floats<Number, false, false>(type, ftz);
  if (d.take("nan")) return of_floats<Number, true, true>(type, ftz);
  constexpr std::string_view kUnsigned[][2] = {
      {"lo", "lt"}, {"ls", "le"}, {"hi", "gt"}, {"hs", "ge"}};
  for (const auto& each : kComparisons) {
    *exchanged = each.exchanged;
    if (d.take(each.name)) return is_float(type) ? each.ordered(type, ftz) : each.integers(type);
    if (is_float(type) && d.take(std::string(each.name) + "u")) return each.unordered(type, ftz);
    for (const auto& names : kUnsigned) {
      if (names[1] == each.name && d.take(names[0])) return each.integers(unsigned_of(type));
    }
  }
  return nullptr;
}

// mode: as in kProperties
void test_property(Warp& warp, const Instruction& i) {
  unary<bool, float>(warp, i, [mode = i.mode](float a) {
    switch (mode) {
      case 0:
        return std::isfinite(a);
      case 1:
        return std::isinf(a);
      case 2:
        return !std::isnan(a);
      case 3:
        return std::isnan(a);
      case 4:
        return std::isnormal(a);
      default:
        return std::isfinite(a) && !std::isnormal(a) && a != 0.0f;
    }
  });
}

}  // namespace

bool decode_compare(Decoder& d) {
  if (d.opcode == "testp") {
    const int property =
        d.take_one_of({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
    if (property < 0 || d.take_type() != Type::f32) return false;
    d.simple(2, Type::f32);
    d.out.mode = static_cast<uint8_t>(property);
    d.out.run = test_property;
    return true;
  }
  if (d.opcode != "setp") return false;
  const Type type = d.take_type();
  bool exchanged = false;
  d.out.run = comparison(d, type, &exchanged);
  d.out.mode = static_cast<uint8_t>(d.take_one_of({"and", "or", "xor"}) + 1);
  d.expect(d.out.mode ? 4 : 3);
  const size_t bar = d.operands[0].find('|');
  d.out.operands[0] = d.destination(trimmed(d.operands[0].substr(0, bar)));
  if (bar != std::string_view::npos)
    d.out.operands[1] = d.destination(trimmed(d.operands[0].substr(bar + 1)));
  d.out.operands[exchanged ? 3 : 2] = d.source(d.operands[1], type);
  d.out.operands[exchanged ? 2 : 3] = d.source(d.operands[2], type);
  if (d.out.mode) {
    const bool negated = d.operands[3][0] == '!';
    d.out.operands[4] = d.predicate(d.operands[3].substr(negated ? 1 : 0));
    d.out.mode |= negated ? 4 : 0;
  }
  return true;
}

}  // namespace ard::emulator
