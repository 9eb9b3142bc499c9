// The approximate functions, within the error that the PTX ISA documents.
#include <cmath>

#include "emulator/decoder.h"
#include "emulator/floats.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

uint64_t mixed(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdu;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53u;
  return x ^ x >> 33;
}

double ulp(float value) {
  const float magnitude = std::fabs(value);
  if (magnitude < 0x1p-126f) return 0x1p-149;
  return static_cast<double>(std::nextafter(magnitude, INFINITY)) - magnitude;
}

// What an operation may give instead of the correctly rounded result: the same for the same
// operands.
struct Error {
  const Options& options;
  uint64_t operation;

  float applied(float exact, double bound, float a, float b = 0.0f) const {
    if (options.approximation == Approximation::exact || !std::isfinite(exact) || exact == 0.0f)
      return exact;
    const uint64_t operands = static_cast<uint64_t>(bits_of(a)) << 32 | bits_of(b);
    const uint64_t random =
        mixed(mixed(operands) ^ mixed(operation + options.seed * 0x9e3779b97f4a7c15u));
    const bool extreme = options.approximation == Approximation::extreme;
    const double share = extreme ? (random & 1 ? 1.0 : -1.0)
                                 : static_cast<double>(static_cast<int64_t>(random)) * 0x1p-63;
    const float result = static_cast<float>(exact + share * bound);
    // Rounding must not lead beyond the bound.
    return std::fabs(static_cast<double>(result) - exact) > bound ? std::nextafter(result, exact)
                                                                  : result;
  }
};

struct Exp2 {
  static float of(const Error& error, float a) {
    if (a == 0.0f) return 1.0f;
    const float exact = static_cast<float>(std::exp2(static_cast<double>(a)));
    return error.applied(exact, 2 * ulp(exact), a);
  }
};
struct Log2 {
  static float of(const Error& error, float a) {
    const float exact = static_cast<float>(std::log2(static_cast<double>(a)));
    return error.applied(exact, a > 0.5f && a < 2.0f ? 0x1p-22 : 0x1p-22 * std::fabs(exact), a);
  }
};
struct Reciprocal {
  static float of(const Error& error, float a) {
    const float exact = 1.0f / a;
    return error.applied(exact, ulp(exact), a);
  }
};
struct SquareRoot {
  static float of(const Error& error, float a) {
    const float exact = std::sqrt(a);
    return error.applied(exact, 0x1p-23 * exact, a);
  }
};
struct ReciprocalSquareRoot {
  static float of(const Error& error, float a) {
    const float exact = static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
    return error.applied(exact, 0x1.1p-23 * std::fabs(exact), a);  // 2^-22.9
  }
};
struct Sine {
  static float of(const Error& error, float a) {
    const float exact = static_cast<float>(std::sin(static_cast<double>(a)));
    return error.applied(exact, 0x1.6ap-21, a);  // 2^-20.5
  }
};
struct Cosine {
  static float of(const Error& error, float a) {
    const float exact = static_cast<float>(std::cos(static_cast<double>(a)));
    return a == 0.0f ? 1.0f : error.applied(exact, 0x1.6ap-21, a);
  }
};
struct Tanh {
  static float of(const Error& error, float a) {
    const float exact = static_cast<float>(std::tanh(static_cast<double>(a)));
    return error.applied(exact, 0x1p-11 * std::fabs(exact), a);
  }
};
struct DivideFull {
  static float of(const Error& error, float a, float b) {
    const float exact = a / b;
    return error.applied(exact, 2 * ulp(exact), a, b);
  }
};
struct DivideApproximate {  // a / b by the reciprocal, which is 0 for a large b
  static float of(const Error& error, float a, float b) {
    if (std::fabs(b) <= 0x1p126f || std::isinf(b) || std::isnan(a))
      return DivideFull::of(error, a, b);
    return std::isinf(a) ? NAN : std::copysign(0.0f, std::copysign(1.0f, a) * b);
  }
};

template <class Operation, bool kFlush>
void one_source(Warp& warp, const Instruction& i) {
  const Error error{warp.launch->options, i.mode};
  unary<float, float>(warp, i, [&](float a) {
    return canonical(flushed<kFlush>(Operation::of(error, flushed<kFlush>(a))));
  });
}
template <class Operation, bool kFlush>
void two_sources(Warp& warp, const Instruction& i) {
  const Error error{warp.launch->options, i.mode};
  binary<float, float, float>(warp, i, [&](float a, float b) {
    return canonical(flushed<kFlush>(Operation::of(error, flushed<kFlush>(a), flushed<kFlush>(b))));
  });
}

constexpr struct {
  std::string_view name, modifier;
  size_t operands;
  Handler plain, ftz;
} kOperations[] = {
    {"ex2", "approx", 2, one_source<Exp2, false>, one_source<Exp2, true>},
    {"lg2", "approx", 2, one_source<Log2, false>, one_source<Log2, true>},
    {"rcp", "approx", 2, one_source<Reciprocal, false>, one_source<Reciprocal, true>},
    {"sqrt", "approx", 2, one_source<SquareRoot, false>, one_source<SquareRoot, true>},
    {"rsqrt", "approx", 2, one_source<ReciprocalSquareRoot, false>,
     one_source<ReciprocalSquareRoot, true>},
    {"sin", "approx", 2, one_source<Sine, false>, one_source<Sine, true>},
    {"cos", "approx", 2, one_source<Cosine, false>, one_source<Cosine, true>},
    {"tanh", "approx", 2, one_source<Tanh, false>, one_source<Tanh, true>},
    {"div", "full", 3, two_sources<DivideFull, false>, two_sources<DivideFull, true>},
    {"div", "approx", 3, two_sources<DivideApproximate, false>,
     two_sources<DivideApproximate, true>},
};

}  // namespace

bool decode_approximate(Decoder& d) {
  uint8_t number = 0;
  for (const auto& operation : kOperations) {
    ++number;
    if (operation.name != d.opcode || d.peek_type() != Type::f32 || !d.take(operation.modifier))
      continue;
    d.take_type();
    d.simple(operation.operands, Type::f32);
    d.out.mode = number;
    d.out.run = d.take("ftz") ? operation.ftz : operation.plain;
    return true;
  }
  return false;
}

}  // namespace ard::emulator
