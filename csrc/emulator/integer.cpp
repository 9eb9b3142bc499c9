// Integer arithmetic, and moves, selections and comparisons of any type.
#include <algorithm>
#include <type_traits>

#include "emulator/decoder.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
// Products of 16-bit values would be computed as int.
template <class T>
using Wrapping = std::conditional_t<(sizeof(T) < 4), uint32_t, Unsigned<T>>;
template <class T>
using Wide = std::conditional_t<
    std::is_signed_v<T>,
    std::conditional_t<sizeof(T) == 2, int32_t,
                       std::conditional_t<sizeof(T) == 4, int64_t, __int128>>,
    std::conditional_t<sizeof(T) == 2, uint32_t,
                       std::conditional_t<sizeof(T) == 4, uint64_t, unsigned __int128>>>;

struct Add {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(Wrapping<T>(a) + Wrapping<T>(b));
  }
};
struct Subtract {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(Wrapping<T>(a) - Wrapping<T>(b));
  }
};
struct MultiplyLow {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(Wrapping<T>(a) * Wrapping<T>(b));
  }
};
struct MultiplyHigh {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>((Wide<T>(a) * Wide<T>(b)) >> (8 * sizeof(T)));
  }
};
struct Minimum {
  template <class T>
  static T of(T a, T b) {
    return std::min(a, b);
  }
};
struct Maximum {
  template <class T>
  static T of(T a, T b) {
    return std::max(a, b);
  }
};
struct Divide {
  template <class T>
  static T of(T a, T b) {
    return b == static_cast<T>(-1) ? Subtract::of(T{0}, a) : static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  static T of(T a, T b) {
    return b == static_cast<T>(-1) ? T{0} : static_cast<T>(a % b);
  }
};

template <class Operation>
Handler of_two(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      binary<T, T, T>(warp, i, Operation::template of<T>);
    };
  });
}

// Division by zero has no documented result: a fault.
template <class Operation>
Handler of_division(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      const uint64_t* divisors = warp.slot(i.operands[2]);
      warp.each([&](unsigned lane) {
        if (get<T>(divisors[lane]) == 0) fault(warp, lane, i, "integer division by zero");
      });
      binary<T, T, T>(warp, i, [](T a, T b) {
        // Only of signed values is -1 special: the quotient may not be representable.
        if constexpr (std::is_signed_v<T>)
          return Operation::template of<T>(a, b);
        else
          return std::is_same_v<Operation, Divide> ? static_cast<T>(a / b) : static_cast<T>(a % b);
      });
    };
  });
}

template <class Product>
Handler of_mad(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      ternary<T, T, T, T>(
          warp, i, [](T a, T b, T c) { return Add::of<T>(Product::template of<T>(a, b), c); });
    };
  });
}

// mul.wide, or mad.wide with the third source.
template <bool kAdds>
Handler of_wide(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    if constexpr (sizeof(T) == 8) {
      return nullptr;
    } else {
      using W = Wide<T>;
      return [](Warp& warp, const Instruction& i) {
        if constexpr (kAdds) {
          ternary<W, T, T, W>(
              warp, i, [](T a, T b, W c) { return Add::of<W>(MultiplyLow::of<W>(a, b), c); });
        } else {
          binary<W, T, T>(warp, i, [](T a, T b) { return MultiplyLow::of<W>(a, b); });
        }
      };
    }
  });
}

template <bool kAbsolute>
Handler of_sign(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    if constexpr (!std::is_signed_v<T>) {
      return nullptr;
    } else {
      return [](Warp& warp, const Instruction& i) {
        unary<T, T>(warp, i, [](T a) { return kAbsolute && a >= 0 ? a : Subtract::of<T>(0, a); });
      };
    }
  });
}

constexpr struct {
  std::string_view name;
  size_t operands;
  Handler (*make)(Type);
} kOperations[] = {
    {"add", 3, of_two<Add>},         {"sub", 3, of_two<Subtract>},
    {"min", 3, of_two<Minimum>},     {"max", 3, of_two<Maximum>},
    {"div", 3, of_division<Divide>}, {"rem", 3, of_division<Remainder>},
    {"neg", 2, of_sign<false>},      {"abs", 2, of_sign<true>},
};

}  // namespace

bool decode_integer(Decoder& d) {
  if (d.opcode == "mul" || d.opcode == "mad") {
    const int part = d.take_one_of({"lo", "hi", "wide"});
    if (part < 0) return false;
    const Type type = d.take_type();
    const bool adds = d.opcode == "mad";
    d.simple(adds ? 4 : 3, type);
    if (part == 0) d.out.run = adds ? of_mad<MultiplyLow>(type) : of_two<MultiplyLow>(type);
    if (part == 1) d.out.run = adds ? of_mad<MultiplyHigh>(type) : of_two<MultiplyHigh>(type);
    if (part == 2) d.out.run = adds ? of_wide<true>(type) : of_wide<false>(type);
    return true;
  }
  for (const auto& operation : kOperations) {
    if (operation.name != d.opcode) continue;
    const Type type = d.peek_type();
    if (is_float(type)) return false;
    d.take_type();
    d.simple(operation.operands, type);
    d.out.run = operation.make(type);
    return true;
  }
  return false;
}

}  // namespace ard::emulator
