// Arithmetic on f32 and f64 as IEEE has it.
#include <cmath>

#include "emulator/decoder.h"
#include "emulator/floats.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

struct Add {
  template <class T>
  static T of(T a, T b) {
    return a + b;
  }
};
struct Subtract {
  template <class T>
  static T of(T a, T b) {
    return a - b;
  }
};
struct Multiply {
  template <class T>
  static T of(T a, T b) {
    return a * b;
  }
};
struct Divide {
  template <class T>
  static T of(T a, T b) {
    return a / b;
  }
};
struct Minimum {
  template <class T>
  static T of(T a, T b) {
    return minimum(a, b);
  }
};
struct Maximum {
  template <class T>
  static T of(T a, T b) {
    return maximum(a, b);
  }
};
struct CopySign {  // the first operand's sign
  template <class T>
  static T of(T a, T b) {
    return std::copysign(b, a);
  }
};
struct SquareRoot {
  template <class T>
  static T of(T a) {
    return std::sqrt(a);
  }
};
struct Reciprocal {
  template <class T>
  static T of(T a) {
    return T{1} / a;
  }
};
struct Negate {
  template <class T>
  static T of(T a) {
    return -a;
  }
};
struct Absolute {
  template <class T>
  static T of(T a) {
    return std::fabs(a);
  }
};

template <class Operation, class T, bool kFlush, bool kSaturate>
void one_source(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.rounding);
  unary<T, T>(warp, i, [](T a) {
    const T result = Operation::template of<T>(flushed<kFlush>(a));
    return canonical(saturated<kSaturate>(flushed<kFlush>(result)));
  });
}
template <class Operation, class T, bool kFlush, bool kSaturate>
void two_sources(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.rounding);
  binary<T, T, T>(warp, i, [](T a, T b) {
    const T result = Operation::template of<T>(flushed<kFlush>(a), flushed<kFlush>(b));
    return canonical(saturated<kSaturate>(flushed<kFlush>(result)));
  });
}

inline float fma_of(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma_of(double a, double b, double c) { return __builtin_fma(a, b, c); }

template <class T, bool kFlush, bool kSaturate>
inline __attribute__((always_inline)) void fma_lanes(Warp& warp, const Instruction& i) {
  const RoundingScope scope(i.rounding);
  ternary<T, T, T, T>(warp, i, [](T a, T b, T c) __attribute__((always_inline)) {
    const T result = fma_of(flushed<kFlush>(a), flushed<kFlush>(b), flushed<kFlush>(c));
    return canonical(saturated<kSaturate>(flushed<kFlush>(result)));
  });
}
// Of a contraction. mode: 1 negates the product, 2 the addend.
template <class T, bool kFlush, bool>
void fma_signed(Warp& warp, const Instruction& i) {
  ternary<T, T, T, T>(warp, i, [mode = i.mode](T a, T b, T c) {
    const T product = flushed<kFlush>(a), addend = flushed<kFlush>(c);
    const T result =
        fma_of(mode & 1 ? -product : product, flushed<kFlush>(b), mode & 2 ? -addend : addend);
    return canonical(flushed<kFlush>(result));
  });
}
template <class T, bool kFlush, bool kSaturate>
void fma_library(Warp& warp, const Instruction& i) {
  fma_lanes<T, kFlush, kSaturate>(warp, i);
}
// The same with the processor's instruction instead of a call.
template <class T, bool kFlush, bool kSaturate>
__attribute__((target("fma"))) void fma_hardware(Warp& warp, const Instruction& i) {
  fma_lanes<T, kFlush, kSaturate>(warp, i);
}
template <class T, bool kFlush, bool kSaturate>
struct Fma {
  static Handler handler() {
    static const bool has = __builtin_cpu_supports("fma");
    return has ? fma_hardware<T, kFlush, kSaturate> : fma_library<T, kFlush, kSaturate>;
  }
};

template <class T, bool kFlush, bool kSaturate>
struct SignedFma {
  static Handler handler() { return fma_signed<T, kFlush, kSaturate>; }
};

template <class Operation>
struct Of {
  template <class T, bool kFlush, bool kSaturate>
  struct One {
    static Handler handler() { return one_source<Operation, T, kFlush, kSaturate>; }
  };
  template <class T, bool kFlush, bool kSaturate>
  struct Two {
    static Handler handler() { return two_sources<Operation, T, kFlush, kSaturate>; }
  };
};

template <template <class, bool, bool> class Form>
Handler choose(Type type, bool ftz, bool sat) {
  if (type == Type::f64) return ftz || sat ? nullptr : Form<double, false, false>::handler();
  if (type != Type::f32) return nullptr;
  if (ftz) return sat ? Form<float, true, true>::handler() : Form<float, true, false>::handler();
  return sat ? Form<float, false, true>::handler() : Form<float, false, false>::handler();
}

constexpr struct {
  std::string_view name;
  size_t operands;
  FloatForm::Kind kind;
  bool needs_rounding;
  Handler (*make)(Type, bool, bool);
} kOperations[] = {
    {"fma", 4, FloatForm::other, true, choose<Fma>},
    {"add", 3, FloatForm::add, false, choose<Of<Add>::Two>},
    {"sub", 3, FloatForm::subtract, false, choose<Of<Subtract>::Two>},
    {"mul", 3, FloatForm::multiply, false, choose<Of<Multiply>::Two>},
    {"div", 3, FloatForm::other, true, choose<Of<Divide>::Two>},
    {"min", 3, FloatForm::other, false, choose<Of<Minimum>::Two>},
    {"max", 3, FloatForm::other, false, choose<Of<Maximum>::Two>},
    {"copysign", 3, FloatForm::other, false, choose<Of<CopySign>::Two>},
    {"sqrt", 2, FloatForm::other, true, choose<Of<SquareRoot>::One>},
    {"rcp", 2, FloatForm::other, true, choose<Of<Reciprocal>::One>},
    {"neg", 2, FloatForm::other, false, choose<Of<Negate>::One>},
    {"abs", 2, FloatForm::other, false, choose<Of<Absolute>::One>},
};

}  // namespace

bool decode_float(Decoder& d) {
  const Type type = d.peek_type();
  if (type != Type::f32 && type != Type::f64) return false;
  for (const auto& operation : kOperations) {
    if (operation.name != d.opcode) continue;
    const Rounding rounding = d.take_rounding();
    if (operation.needs_rounding && rounding == Rounding::none) return false;  // .approx, .full
    d.take_type();
    const bool ftz = d.take("ftz"), sat = d.take("sat");
    d.simple(operation.operands, type);
    d.out.rounding = rounding;
    d.out.run = operation.make(type, ftz, sat);
    if (rounding == Rounding::none && !sat) d.form = {operation.kind, type, ftz};
    return true;
  }
  return false;
}

Handler fused(Type type, bool ftz) { return choose<SignedFma>(type, ftz, false); }

}  // namespace ard::emulator
