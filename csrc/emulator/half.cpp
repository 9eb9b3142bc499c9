// Arithmetic on f16 and bf16, single and packed by two. Sums, products and fma of them, computed as
// double, round to 16 bits as the exact results would.
#include <cmath>

#include "emulator/decoder.h"
#include "emulator/floats.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

struct Add {
  static double of(double a, double b, double) { return a + b; }
};
struct Subtract {
  static double of(double a, double b, double) { return a - b; }
};
struct Multiply {
  static double of(double a, double b, double) { return a * b; }
};
// The product is exact. A sum that is not is made odd, so that the second rounding sees the rest.
struct Fma {
  static double of(double a, double b, double c) {
    const double product = a * b, sum = product + c;
    const double back = sum - product, rest = (product - (sum - back)) + (c - back);
    if (!(std::fabs(rest) > 0.0) || bits_of(sum) & 1) return sum;
    return std::nextafter(sum, rest > 0.0 ? INFINITY : -INFINITY);
  }
};
struct Minimum {
  static double of(double a, double b, double) { return minimum(a, b); }
};
struct Maximum {
  static double of(double a, double b, double) { return maximum(a, b); }
};
struct Negate {
  static double of(double a, double, double) { return -a; }
};
struct Absolute {
  static double of(double a, double, double) { return std::fabs(a); }
};

// mode bit 0: .ftz, bit 1: .sat
template <class Operation, bool kBfloat, unsigned kCount>
void compute(Warp& warp, const Instruction& i) {
  const bool ftz = i.mode & 1, sat = i.mode & 2;
  const auto source = [&](uint64_t slot, unsigned part) -> double {
    const uint16_t half = static_cast<uint16_t>(slot >> (16 * part));
    const float value = kBfloat ? from_bf16(half) : from_f16(half);
    return ftz && std::fabs(value) < 0x1p-14f ? std::copysign(0.0f, value) : value;
  };
  const uint64_t* sources[3];
  for (unsigned n = 0; n < 3; ++n) {
    const Operand operand = i.operands[1 + n];
    sources[n] = warp.slot(operand == kNoOperand ? i.operands[1] : operand);
  }
  uint64_t* to = warp.out(i.operands[0]);
  warp.each([&](unsigned lane) {
    uint64_t result = 0;
    for (unsigned part = 0; part < kCount; ++part) {
      double value = Operation::of(source(sources[0][lane], part), source(sources[1][lane], part),
                                   source(sources[2][lane], part));
      if (sat) value = saturated<true>(value);
      uint16_t half = to_half(value, kBfloat ? kBf16 : kF16, Rounding::nearest);
      if (ftz && !(half & 0x7c00)) half &= 0x8000;
      result |= static_cast<uint64_t>(half) << (16 * part);
    }
    to[lane] = result;
  });
}

template <class Operation>
Handler choose(Type type) {
  switch (type) {
    case Type::f16:
      return compute<Operation, false, 1>;
    case Type::f16x2:
      return compute<Operation, false, 2>;
    case Type::bf16:
      return compute<Operation, true, 1>;
    default:
      return compute<Operation, true, 2>;
  }
}

constexpr struct {
  std::string_view name;
  size_t operands;
  Handler (*make)(Type);
} kOperations[] = {
    {"add", 3, choose<Add>},    {"sub", 3, choose<Subtract>}, {"mul", 3, choose<Multiply>},
    {"fma", 4, choose<Fma>},    {"min", 3, choose<Minimum>},  {"max", 3, choose<Maximum>},
    {"neg", 2, choose<Negate>}, {"abs", 2, choose<Absolute>},
};

}  // namespace

bool decode_half(Decoder& d) {
  if (!is_half(d.peek_type())) return false;
  for (const auto& operation : kOperations) {
    if (operation.name != d.opcode) continue;
    const Type type = d.take_type();
    d.drop("rn");
    const bool bfloat = type == Type::bf16 || type == Type::bf16x2;
    d.out.mode = bfloat ? 0 : static_cast<uint8_t>(d.take("ftz") + 2 * d.take("sat"));
    d.simple(operation.operands, type);
    d.out.run = operation.make(type);
    return true;
  }
  return false;
}

}  // namespace ard::emulator
