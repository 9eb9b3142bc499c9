// Floating-point arithmetic and comparisons.
#include <cmath>

#include "emulator/decoder.h"
#include "emulator/floats.h"
#include "emulator/machine.h"

namespace ard::emulator {
namespace {

// clang-format off
// -0 is less than +0; a NaN gives the other operand.
template <class T> T minimum(T a, T b) { return a != a || b < a || (a == b && std::signbit(b)) ? b : a; }
template <class T> T maximum(T a, T b) { return a != a || b > a || (a == b && std::signbit(a)) ? b : a; }
// clang-format on

inline __attribute__((always_inline)) float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
inline __attribute__((always_inline)) double fma(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}

// The double that rounds to 16 bits as the exact a * b + c does. The product is exact; a sum that
// is not is made odd.
double fma_of_halves(double a, double b, double c) {
  const double product = a * b, sum = product + c;
  const double back = sum - product, rest = (product - (sum - back)) + (c - back);
  if (!(std::fabs(rest) > 0.0) || bits_of(sum) & 1) return sum;
  return std::nextafter(sum, rest > 0.0 ? INFINITY : -INFINITY);
}

// --- approximate functions, within the error that the PTX ISA documents

double ulp(float value) {
  const float magnitude = std::fabs(value);
  return magnitude < 0x1p-126f ? 0x1p-149 : double(std::nextafter(magnitude, INFINITY)) - magnitude;
}

struct Approximate {
  float result;  // correctly rounded
  double bound;
};
Approximate exp2_of(float a, float) {
  const float result = float(std::exp2(double(a)));
  return {result, a == 0.0f ? 0.0 : 2 * ulp(result)};
}
Approximate log2_of(float a, float) {
  const float result = float(std::log2(double(a)));
  return {result, a > 0.5f && a < 2.0f ? 0x1p-22 : 0x1p-22 * std::fabs(result)};
}
Approximate reciprocal_of(float a, float) { return {1.0f / a, ulp(1.0f / a)}; }
Approximate square_root_of(float a, float) { return {std::sqrt(a), 0x1p-23 * std::sqrt(a)}; }
Approximate inverse_root_of(float a, float) {
  const float result = float(1.0 / std::sqrt(double(a)));
  return {result, 0x1.1p-23 * std::fabs(result)};  // 2^-22.9
}
Approximate quotient_of(float a, float b) { return {a / b, 2 * ulp(a / b)}; }

u64 mixed(u64 x) {
  x = (x ^ x >> 33) * 0xff51afd7ed558ccdu;
  x = (x ^ x >> 33) * 0xc4ceb9fe1a85ec53u;
  return x ^ x >> 33;
}

// What hardware may give: the same for the same operation, operands and seed.
float disturbed(const Approximate& exact, const Options& options, u64 operation, float a, float b) {
  const float result = exact.result;
  if (options.approximation == Approximation::exact || !std::isfinite(result) || result == 0.0f)
    return result;
  const u64 operands = u64(bits_of(a)) << 32 | bits_of(b);
  const u64 random = mixed(mixed(operands) ^ mixed(operation + options.seed * 0x9e3779b97f4a7c15u));
  const bool extreme = options.approximation == Approximation::extreme;
  const double share = extreme ? (random & 1 ? 1.0 : -1.0) : double(s64(random)) * 0x1p-63;
  const float other = float(result + share * exact.bound);
  // Rounding must not lead beyond the bound.
  return std::fabs(double(other) - result) > exact.bound ? std::nextafter(other, result) : other;
}

template <Approximate (*kFunction)(float, float), bool kFlush>
void approximate(Warp& warp, const Instruction& i) {
  const auto f = [&](float a, float b) {
    a = flushed<kFlush>(a);
    b = flushed<kFlush>(b);
    return canonical(
        flushed<kFlush>(disturbed(kFunction(a, b), warp.launch->options, i.mode, a, b)));
  };
  map<float(float, float)>(warp, i, f);
}

// --- handlers of f32 and f64; F: a function that is called with up to three operands

template <class T, bool kFlush, bool kSaturate, class F>
inline __attribute__((always_inline)) void compute(Warp& warp, const Instruction& i, F f) {
  const RoundingScope scope(i.rounding);
  const auto whole = [&](T a, T b, T c) __attribute__((always_inline)) {
    const T result = f(flushed<kFlush>(a), flushed<kFlush>(b), flushed<kFlush>(c));
    return canonical(saturated<kSaturate>(flushed<kFlush>(result)));
  };
  map<T(T, T, T)>(warp, i, whole);
}

#define FLOAT_HANDLER(name, attributes, expression)                              \
  template <class T, bool kFlush, bool kSaturate>                                \
  attributes void name(Warp& warp, const Instruction& i) {                       \
    const auto f = [&](T a, [[maybe_unused]] T b, [[maybe_unused]] T c)          \
                       __attribute__((always_inline)) { return T(expression); }; \
    compute<T, kFlush, kSaturate>(warp, i, f);                                   \
  }
FLOAT_HANDLER(add, , a + b)
FLOAT_HANDLER(subtract, , a - b)
FLOAT_HANDLER(multiply, , a* b)
FLOAT_HANDLER(divide, , a / b)
FLOAT_HANDLER(lesser, , minimum(a, b))
FLOAT_HANDLER(greater, , maximum(a, b))
FLOAT_HANDLER(copy_sign, , std::copysign(b, a))
FLOAT_HANDLER(square_root, , std::sqrt(a))
FLOAT_HANDLER(reciprocal, , T(1) / a)
FLOAT_HANDLER(negative, , -a)
FLOAT_HANDLER(absolute, , std::fabs(a))
FLOAT_HANDLER(fused_plain, , fma(a, b, c))
// The same by the processor's instruction instead of a call.
FLOAT_HANDLER(fused_fast, __attribute__((target("fma"))), fma(a, b, c))
FLOAT_HANDLER(fused_signed, , fma(i.mode & 1 ? -a : a, b, i.mode & 2 ? -c : c))

#define CHOOSE(name)                                                                          \
  [](Type type, bool ftz, bool sat) -> Handler {                                              \
    if (type == Type::f64) return ftz || sat ? nullptr : Handler(name<double, false, false>); \
    if (ftz) return sat ? name<float, true, true> : name<float, true, false>;                 \
    return sat ? name<float, false, true> : name<float, false, false>;                        \
  }

using Kind = FloatForm::Kind;
constexpr struct {
  std::string_view name;
  size_t operands;
  Kind kind;
  Handler (*make)(Type, bool, bool);
} kOperations[] = {
    {"add", 3, Kind::add, CHOOSE(add)},
    {"sub", 3, Kind::subtract, CHOOSE(subtract)},
    {"mul", 3, Kind::multiply, CHOOSE(multiply)},
    {"div", 3, Kind::other, CHOOSE(divide)},
    {"min", 3, Kind::other, CHOOSE(lesser)},
    {"max", 3, Kind::other, CHOOSE(greater)},
    {"copysign", 3, Kind::other, CHOOSE(copy_sign)},
    {"sqrt", 2, Kind::other, CHOOSE(square_root)},
    {"rcp", 2, Kind::other, CHOOSE(reciprocal)},
    {"neg", 2, Kind::other, CHOOSE(negative)},
    {"abs", 2, Kind::other, CHOOSE(absolute)},
    {"fma", 4, Kind::other, CHOOSE(fused_plain)},
};

#define PLAIN_AND_FTZ(function) {approximate<function, false>, approximate<function, true>}
constexpr struct {
  std::string_view name, modifier;
  size_t operands;
  Handler handlers[2];
} kApproximations[] = {
    {"ex2", "approx", 2, PLAIN_AND_FTZ(exp2_of)},
    {"lg2", "approx", 2, PLAIN_AND_FTZ(log2_of)},
    {"rcp", "approx", 2, PLAIN_AND_FTZ(reciprocal_of)},
    {"sqrt", "approx", 2, PLAIN_AND_FTZ(square_root_of)},
    {"rsqrt", "approx", 2, PLAIN_AND_FTZ(inverse_root_of)},
    {"div", "full", 3, PLAIN_AND_FTZ(quotient_of)},
};

// f16 and bf16, single and packed by two: computed as double, which rounds to 16 bits as the exact
// results would.
constexpr struct {
  std::string_view name;
  size_t operands;
  double (*function)(double, double, double);
} kHalfOperations[] = {
    {"add", 3, [](double a, double b, double) { return a + b; }},
    {"sub", 3, [](double a, double b, double) { return a - b; }},
    {"mul", 3, [](double a, double b, double) { return a * b; }},
    {"fma", 4, fma_of_halves},
    {"min", 3, [](double a, double b, double) { return minimum(a, b); }},
    {"max", 3, [](double a, double b, double) { return maximum(a, b); }},
    {"neg", 2, [](double a, double, double) { return -a; }},
    {"abs", 2, [](double a, double, double) { return std::fabs(a); }},
};

template <class Format, unsigned kCount>
void halves(Warp& warp, const Instruction& i) {
  const auto f = [&](u32 a, u32 b, u32 c) {
    u32 result = 0;
    for (unsigned shift = 0; shift < 16 * kCount; shift += 16) {
      const double value = kHalfOperations[i.mode].function(
          Format::read(a >> shift), Format::read(b >> shift), Format::read(c >> shift));
      result |= u32(Format::write(value, Rounding::nearest)) << shift;
    }
    return result;
  };
  map<u32(u32, u32, u32)>(warp, i, f);
}

bool decode_halves(Decoder& d, Type type) {
  for (const auto& operation : kHalfOperations) {
    if (operation.name != d.opcode) continue;
    d.take_type();
    d.take("rn");
    d.simple(operation.operands, type);
    d.out.mode = u8(&operation - kHalfOperations);
    d.out.run = type == Type::f16     ? halves<F16, 1>
                : type == Type::bf16  ? halves<Bf16, 1>
                : type == Type::f16x2 ? halves<F16, 2>
                                      : halves<Bf16, 2>;
    return true;
  }
  return false;
}

// --- setp

// mode of a comparison: what is tested, how the result is turned, what it is combined with
enum Test : u8 { kEqual, kLess, kLessEqual, kNumber };  // kNumber: no NaN
constexpr u8 kInverted = 4, kUnordered = 8, kNegated = 128;
constexpr unsigned kCombineShift = 4;  // 1 and, 2 or, 3 xor

// Operands: result, its inverse or none, a, b, another predicate or none.
template <class Format>
void compare(Warp& warp, const Instruction& i) {
  using T = typename Format::Value;
  const u64 *a = warp.slot(i.operands[2]), *b = warp.slot(i.operands[3]);
  u64* to = warp.out(i.operands[0]);
  const u8 combines = i.mode >> kCombineShift & 3, test = i.mode & 3;
  const bool inverted = i.mode & kInverted, unordered = i.mode & kUnordered;
  const auto combined = [&](bool result, bool other) {
    return combines == 1 ? result && other : combines == 2 ? result || other : result != other;
  };
  warp.each([&](unsigned lane) {
    const T x = Format::read(a[lane]), y = Format::read(b[lane]);
    bool result = test == kLess ? x < y : test == kLessEqual ? x <= y : test == kNumber || x == y;
    result = x != x || y != y ? unordered : result != inverted;
    if (i.operands[1] == kNoOperand && !combines) {
      to[lane] = result;
      return;
    }
    const bool other = combines && (warp.slot(i.operands[4])[lane] & 1) != i.mode / kNegated;
    to[lane] = combines ? combined(result, other) : result;
    if (i.operands[1] != kNoOperand)
      warp.out(i.operands[1])[lane] = combines ? combined(!result, other) : !result;
  });
}

Handler comparison(Type type, bool ftz) {
  if (type == Type::f16) return compare<F16>;
  if (type == Type::bf16) return compare<Bf16>;
  if (type == Type::f32) return ftz ? compare<F32<true>> : compare<F32<false>>;
  if (type == Type::f64) return compare<F64>;
  return by_integer(
      type, [](auto tag) -> Handler { return compare<Integer<typename decltype(tag)::type>>; });
}

// Ordered comparisons are false with NaN, those with a u behind are true. a > b is b < a.
constexpr struct {
  std::string_view name;
  u8 mode;
  bool exchanged;
} kComparisons[] = {
    {"eq", kEqual, false}, {"ne", kEqual | kInverted, false},
    {"lt", kLess, false},  {"le", kLessEqual, false},
    {"gt", kLess, true},   {"ge", kLessEqual, true},
    {"lo", kLess, false},  {"ls", kLessEqual, false},
    {"hi", kLess, true},   {"hs", kLessEqual, true},
};

}  // namespace

bool decode_float(Decoder& d) {
  const Type type = d.peek_type();
  if (type == Type::f32) {
    for (const auto& operation : kApproximations) {
      if (operation.name != d.opcode || !d.take(operation.modifier)) continue;
      d.take_type();
      d.out.mode = u8(&operation - kApproximations);
      d.out.run = operation.handlers[d.take("ftz")];
      d.simple(operation.operands, type);
      return true;
    }
  }
  if (type != Type::f32 && type != Type::f64) return is_float(type) && decode_halves(d, type);
  for (const auto& operation : kOperations) {
    if (operation.name != d.opcode) continue;
    d.take_type();
    d.out.rounding = d.take_rounding();
    const bool ftz = d.take("ftz"), sat = d.take("sat"), rounds = d.out.rounding != Rounding::none;
    d.simple(operation.operands, type);
    d.out.run = operation.make(type, ftz, sat);
    if (d.opcode == "fma" && __builtin_cpu_supports("fma"))
      d.out.run = CHOOSE(fused_fast)(type, ftz, sat);
    if (!rounds && !sat) d.form = {operation.kind, type, ftz};
    return true;
  }
  return false;
}

Handler fused(Type type, bool ftz) { return CHOOSE(fused_signed)(type, ftz, false); }

bool decode_compare(Decoder& d) {
  if (d.opcode != "setp") return false;
  const Type type = d.take_type();
  const bool ftz = is_float(type) && d.take("ftz");
  bool exchanged = false, known = false;
  for (const auto& each : kComparisons) {
    const bool unordered = is_float(type) && d.take(std::string(each.name) + "u");
    if (known || !(unordered || d.take(each.name))) continue;
    d.out.mode = u8(each.mode | (unordered ? kUnordered : 0));
    exchanged = each.exchanged;
    known = true;
  }
  if (!known && is_float(type)) {
    const bool nan = d.take("nan");
    d.out.mode = u8(kNumber | (nan ? kInverted | kUnordered : 0));
    known = nan || d.take("num");
  }
  d.out.run = known ? comparison(type, ftz) : nullptr;
  const int combines = d.take_one_of({"and", "or", "xor"}) + 1;
  d.out.mode |= u8(combines << kCombineShift);
  d.expect(combines ? 4 : 3);
  d.destinations(d.operands[0]);
  d.out.operands[exchanged ? 3 : 2] = d.source(d.operands[1], type);
  d.out.operands[exchanged ? 2 : 3] = d.source(d.operands[2], type);
  if (combines && d.negatable(d.operands[3], &d.out.operands[4])) d.out.mode |= kNegated;
  return true;
}

}  // namespace ard::emulator
