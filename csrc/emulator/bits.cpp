// Logic, shifts and fields of bits.
#include <algorithm>

#include "emulator/decoder.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

struct And {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct Xor {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};

// Predicates are bytes of 0 or 1.
template <class Operation>
Handler logic(Type type) {
  return by_size(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      binary<T, T, T>(warp, i, Operation::template of<T>);
    };
  });
}

Handler inverse(Type type) {
  if (type == Type::pred) {
    return [](Warp& warp, const Instruction& i) {
      unary<uint8_t, uint8_t>(warp, i, [](uint8_t a) { return uint8_t(!a); });
    };
  }
  return by_size(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      unary<T, T>(warp, i, [](T a) { return static_cast<T>(~a); });
    };
  });
}

// Amounts beyond the width act as the width.
Handler shift_left(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      binary<T, T, uint32_t>(warp, i, [](T a, uint32_t n) {
        return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<uint64_t>(a) << n);
      });
    };
  });
}
Handler shift_right(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      binary<T, T, uint32_t>(warp, i, [](T a, uint32_t n) {
        constexpr uint32_t kWidth = 8 * sizeof(T);
        if (n >= kWidth) return std::is_signed_v<T> ? static_cast<T>(a >> (kWidth - 1)) : T{0};
        return static_cast<T>(a >> n);
      });
    };
  });
}

Handler count_ones(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      unary<uint32_t, T>(warp, i,
                         [](T a) { return static_cast<uint32_t>(__builtin_popcountll(a)); });
    };
  });
}
Handler count_leading_zeros(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      unary<uint32_t, T>(warp, i, [](T a) {
        constexpr uint32_t kWidth = 8 * sizeof(T);
        return a ? static_cast<uint32_t>(__builtin_clzll(a)) - (64 - kWidth) : kWidth;
      });
    };
  });
}
Handler reversed(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      unary<T, T>(warp, i, [](T a) {
        T result = 0;
        for (unsigned bit = 0; bit < 8 * sizeof(T); ++bit)
          result = static_cast<T>(result << 1 | (a >> bit & 1));
        return result;
      });
    };
  });
}

// The lowest `count` bits, of at least none and at most all.
template <class T>
T low_bits(uint32_t count) {
  return count >= 8 * sizeof(T) ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << count) - 1);
}

// b with the lowest `length` bits of a put in at `position`.
Handler insert_field(Type type) {
  return by_size(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      const uint64_t *a = warp.slot(i.operands[1]), *b = warp.slot(i.operands[2]);
      const uint64_t *positions = warp.slot(i.operands[3]), *lengths = warp.slot(i.operands[4]);
      uint64_t* to = warp.out(i.operands[0]);
      warp.each([&](unsigned lane) {
        const uint32_t position = get<uint8_t>(positions[lane]),
                       length = get<uint8_t>(lengths[lane]);
        const bool inside = position < 8 * sizeof(T);
        const T mask = inside ? static_cast<T>(low_bits<T>(length) << position) : T{0};
        const T field = inside ? static_cast<T>(get<T>(a[lane]) << position) : T{0};
        put<T>(to[lane], static_cast<T>((get<T>(b[lane]) & ~mask) | (field & mask)));
      });
    };
  });
}

// `length` bits of a from `position` on; of a signed type filled up with the field's highest bit
// that there is.
Handler extract_field(Type type) {
  return by_integer(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      ternary<T, T, uint8_t, uint8_t>(warp, i, [](T a, uint32_t position, uint32_t length) {
        using U = std::make_unsigned_t<T>;
        constexpr uint32_t kWidth = 8 * sizeof(T);
        const bool inside = position < kWidth;
        const U mask = low_bits<U>(length);
        U field = inside ? static_cast<U>(static_cast<U>(a) >> position) : U{0};
        field = static_cast<U>(field & mask);
        if (!std::is_signed_v<T> || length == 0) return static_cast<T>(field);
        const uint32_t top = std::min(position + length - 1, kWidth - 1);
        if (!(static_cast<U>(a) >> top & 1)) return static_cast<T>(field);
        const uint32_t bits = inside ? std::min(length, kWidth - position) : 0;
        return static_cast<T>(field | static_cast<U>(~low_bits<U>(bits)));
      });
    };
  });
}

// Four bytes of the eight of a and b, each as a nibble of the selector says; its highest bit copies
// the sign.
void permute(Warp& warp, const Instruction& i) {
  ternary<uint32_t, uint32_t, uint32_t, uint32_t>(
      warp, i, [](uint32_t a, uint32_t b, uint32_t selector) {
        const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
        uint32_t result = 0;
        for (int k = 0; k < 4; ++k) {
          const uint32_t nibble = selector >> (4 * k);
          uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (nibble & 7))) & 0xff;
          if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
          result |= byte << (8 * k);
        }
        return result;
      });
}

// The bit of the table that the bits of a, b and c name, 32 times.
void logic_of_three(Warp& warp, const Instruction& i) {
  const uint32_t table = get<uint32_t>(*warp.slot(i.operands[4]));
  ternary<uint32_t, uint32_t, uint32_t, uint32_t>(
      warp, i, [table](uint32_t a, uint32_t b, uint32_t c) {
        uint32_t result = 0;
        for (uint32_t row = 0; row < 8; ++row) {
          if (table >> row & 1)
            result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
        }
        return result;
      });
}

// b:a shifted; mode bit 0: right, bit 1: the amount is clamped at 32, else taken modulo 32.
void funnel_shift(Warp& warp, const Instruction& i) {
  const bool right = i.mode & 1, clamped = i.mode & 2;
  ternary<uint32_t, uint32_t, uint32_t, uint32_t>(
      warp, i, [=](uint32_t a, uint32_t b, uint32_t amount) {
        const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
        const uint32_t n = clamped ? std::min(amount, 32u) : amount & 31;
        return static_cast<uint32_t>(right ? both >> n : (both << n) >> 32);
      });
}

constexpr struct {
  std::string_view name;
  size_t operands;
  Handler (*make)(Type);
} kOperations[] = {
    {"and", 3, logic<And>},
    {"or", 3, logic<Or>},
    {"xor", 3, logic<Xor>},
    {"not", 2, inverse},
    {"shl", 3, shift_left},
    {"shr", 3, shift_right},
    {"popc", 2, count_ones},
    {"clz", 2, count_leading_zeros},
    {"brev", 2, reversed},
    {"bfi", 5, insert_field},
    {"bfe", 4, extract_field},
    {"prmt", 4, [](Type) -> Handler { return permute; }},
    {"lop3", 5, [](Type) -> Handler { return logic_of_three; }},
    {"shf", 4, [](Type) -> Handler { return funnel_shift; }},
};

}  // namespace

bool decode_bits(Decoder& d) {
  for (const auto& operation : kOperations) {
    if (operation.name != d.opcode) continue;
    if (d.opcode == "shf") {
      d.out.mode =
          static_cast<uint8_t>(d.take_one_of({"l", "r"}) + 2 * d.take_one_of({"wrap", "clamp"}));
    }
    const Type type = d.take_type();
    d.simple(operation.operands, type);
    d.out.run = operation.make(type);
    return true;
  }
  return false;
}

}  // namespace ard::emulator
