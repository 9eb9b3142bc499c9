// Integers and bits; mov and selp of any type.
#include <algorithm>
#include <type_traits>

#include "emulator/decoder.h"
#include "emulator/machine.h"

namespace ard::emulator {
namespace {

template <class T, class Of16, class Of32, class Of64>
using BySize =
    std::conditional_t<sizeof(T) == 2, Of16, std::conditional_t<sizeof(T) == 4, Of32, Of64>>;
// As wide as int at least, which small operands would become.
template <class T>
using Unsigned = std::conditional_t<sizeof(T) == 16, unsigned __int128, BySize<T, u32, u32, u64>>;
template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, BySize<T, s32, s64, __int128>,
                                BySize<T, u32, u64, unsigned __int128>>;
template <class T>
constexpr u32 kWidth = 8 * sizeof(T);

// clang-format off
template <class T> T add(T a, T b) { return T(Unsigned<T>(a) + Unsigned<T>(b)); }
template <class T> T subtract(T a, T b) { return T(Unsigned<T>(a) - Unsigned<T>(b)); }
template <class T> T multiply_low(T a, T b) { return T(Unsigned<T>(a) * Unsigned<T>(b)); }
template <class T> T multiply_high(T a, T b) { return T((Wide<T>(a) * Wide<T>(b)) >> kWidth<T>); }
template <class T> T add_low(T a, T b, T c) { return add<T>(multiply_low<T>(a, b), c); }
template <class T> T add_high(T a, T b, T c) { return add<T>(multiply_high<T>(a, b), c); }
template <class T> Wide<T> multiply_wide(T a, T b) { return multiply_low<Wide<T>>(a, b); }
template <class T> Wide<T> add_wide(T a, T b, Wide<T> c) { return add<Wide<T>>(multiply_wide<T>(a, b), c); }
template <class T> T minimum(T a, T b) { return std::min(a, b); }
template <class T> T maximum(T a, T b) { return std::max(a, b); }
template <class T> T negative(T a) { return subtract<T>(0, a); }
template <class T> T absolute(T a) { return a < 0 ? negative(a) : a; }

template <class T> T conjunction(T a, T b) { return T(a & b); }
template <class T> T disjunction(T a, T b) { return T(a | b); }
template <class T> T difference(T a, T b) { return T(a ^ b); }
template <class T> T inverse(T a) { return T(~a); }
bool inverse_predicate(u8 a) { return !a; }
template <class T> u32 count_ones(T a) { return u32(__builtin_popcountll(a)); }
template <class T> u32 count_zeros(T a) { return a ? u32(__builtin_clzll(a)) - (64 - kWidth<T>) : kWidth<T>; }

// Amounts beyond the width act as the width.
template <class T> T shift_left(T a, u32 n) { return n >= kWidth<T> ? T(0) : T(u64(a) << n); }
template <class T> T shift_right(T a, u32 n) { return n < kWidth<T> ? T(a >> n) : a < 0 ? T(-1) : T(0); }

template <class T> T copy(T a) { return a; }
bool copy_predicate(u64 a) { return a != 0; }  // any number sets it
template <class T> T select(T a, T b, u8 chosen) { return chosen ? a : b; }
// clang-format on

template <class T>
T reversed(T a) {
  T result = 0;
  for (u32 bit = 0; bit < kWidth<T>; ++bit) result = T(result << 1 | (a >> bit & 1));
  return result;
}

// The lowest `count` bits, of at least none and at most all.
template <class T>
T low_bits(u32 count) {
  return count >= kWidth<T> ? T(~T(0)) : T((T(1) << count) - 1);
}

// `length` bits of a from `position` on; of a signed type filled up with the field's highest bit
// that there is.
template <class T>
T extract_field(T a, u8 position, u8 length) {
  using U = std::make_unsigned_t<T>;
  const U field = U(shift_left<U>(low_bits<U>(length), position) & U(a));
  const u32 top = std::min(u32(position) + length - 1, kWidth<T> - 1);
  const bool fills = std::is_signed_v<T> && length > 0 && U(a) >> top & 1;
  const U above = U(~shift_right<U>(shift_left<U>(low_bits<U>(length), position), position));
  return T(shift_right<U>(field, position) | (fills ? above : U(0)));
}

// b with the lowest `length` bits of a put in at `position`.
template <class T>
T insert_field(T a, T b, u8 position, u8 length) {
  const T mask = shift_left<T>(low_bits<T>(length), position);
  return T((b & ~mask) | (shift_left<T>(a, position) & mask));
}

// Four bytes of the eight of a and b, each as a nibble of the selector says; its highest bit copies
// the sign.
u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = u64(b) << 32 | a;
  u32 result = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 nibble = selector >> (4 * k);
    const u8 byte = u8(bytes >> (8 * (nibble & 7)));
    result |= u32(nibble & 8 ? (byte & 0x80 ? 0xff : 0) : byte) << (8 * k);
  }
  return result;
}

// b:a shifted, the amount taken modulo 32 or clamped at 32.
template <bool kRight, bool kClamped>
u32 funnel_shift(u32 a, u32 b, u32 amount) {
  const u64 both = u64(b) << 32 | a;
  const u32 n = kClamped ? std::min(amount, 32u) : amount & 31;
  return u32(kRight ? both >> n : (both << n) >> 32);
}

// That of the lowest number by -1 overflows.
template <class T>
T quotient(T a, T b) {
  return std::is_signed_v<T> && b == T(-1) ? negative(a) : T(a / b);
}
template <class T>
T remainder(T a, T b) {
  return std::is_signed_v<T> && b == T(-1) ? T(0) : T(a % b);
}
// Division by zero has no documented result: a fault.
template <class T, T (*kFunction)(T, T)>
void divide(Warp& warp, const Instruction& i) {
  warp.each([&](unsigned lane) {
    if (get<T>(warp.slot(i.operands[2])[lane]) == 0)
      fault(warp, lane, i, "integer division by zero");
  });
  apply<kFunction>(warp, i);
}

// mov d, {parts}
template <class T>
void pack(Warp& warp, const Instruction& i) {
  warp.each([&](unsigned lane) {
    u64 whole = 0;
    for (unsigned part = 0; part < i.vector; ++part) {
      whole |= u64(get<T>(warp.slot(i.operands[1 + part])[lane])) << (kWidth<T> * part);
    }
    warp.out(i.operands[0])[lane] = whole;
  });
}
// mov {parts}, a: the source is operand 5.
template <class T>
void unpack(Warp& warp, const Instruction& i) {
  warp.each([&](unsigned lane) {
    const u64 whole = warp.slot(i.operands[5])[lane];
    for (unsigned part = 0; part < i.vector; ++part) {
      put<T>(warp.out(i.operands[part])[lane], T(whole >> (kWidth<T> * part)));
    }
  });
}

#define BY(choose, handler)                       \
  [](Type type) -> Handler {                      \
    return choose(type, [](auto tag) -> Handler { \
      using T = typename decltype(tag)::type;     \
      return handler;                             \
    });                                           \
  }
#define INTEGERS(handler) BY(by_integer, handler)
#define BITS(handler) BY(by_size, handler)
#define APPLY(function) apply<function<T>>

template <class T>
Handler wide(bool adds) {
  if constexpr (sizeof(T) == 8)
    return nullptr;
  else
    return adds ? apply<add_wide<T>> : apply<multiply_wide<T>>;
}

constexpr Operation kOperations[] = {
    {"add", 3, INTEGERS(APPLY(add))},
    {"sub", 3, INTEGERS(APPLY(subtract))},
    {"min", 3, INTEGERS(APPLY(minimum))},
    {"max", 3, INTEGERS(APPLY(maximum))},
    {"div", 3, INTEGERS((divide<T, quotient<T>>))},
    {"rem", 3, INTEGERS((divide<T, remainder<T>>))},
    {"neg", 2, INTEGERS(APPLY(negative))},
    {"abs", 2, INTEGERS(APPLY(absolute))},
    {"mul.lo", 3, INTEGERS(APPLY(multiply_low))},
    {"mad.lo", 4, INTEGERS(APPLY(add_low))},
    {"mul.hi", 3, INTEGERS(APPLY(multiply_high))},
    {"mad.hi", 4, INTEGERS(APPLY(add_high))},
    {"mul.wide", 3, INTEGERS(wide<T>(false))},
    {"mad.wide", 4, INTEGERS(wide<T>(true))},
    {"shl", 3, INTEGERS(APPLY(shift_left))},
    {"shr", 3, INTEGERS(APPLY(shift_right))},
    {"popc", 2, INTEGERS(APPLY(count_ones))},
    {"clz", 2, INTEGERS(APPLY(count_zeros))},
    {"brev", 2, INTEGERS(APPLY(reversed))},
    {"bfe", 4, INTEGERS(APPLY(extract_field))},
    {"and", 3, BITS(APPLY(conjunction))},
    {"or", 3, BITS(APPLY(disjunction))},
    {"xor", 3, BITS(APPLY(difference))},
    {"not", 2, BITS(APPLY(inverse))},
    {"bfi", 5, BITS(APPLY(insert_field))},
    {"selp", 4, BITS(APPLY(select))},
    {"mov", 2, BITS(APPLY(copy))},
    {"prmt", 4, [](Type) -> Handler { return apply<permute>; }},
};

void decode_parts(Decoder& d, Type type) {
  const bool unpacks = d.operands[0][0] == '{';
  const auto parts = elements(d.operands[unpacks ? 0 : 1]);
  if (parts.size() != 2 && parts.size() != 4) return;
  d.out.vector = u8(parts.size());
  if (!unpacks) d.out.operands[0] = d.destination(d.operands[0]);
  for (size_t part = 0; part < parts.size(); ++part) {
    if (unpacks)
      d.out.operands[part] = d.destination(parts[part]);
    else
      d.out.operands[1 + part] = d.source(parts[part], Type::b32);
  }
  if (unpacks) d.out.operands[5] = d.source(d.operands[1], type);
  const size_t each = size_of(type) / parts.size();
  if (each == 1) d.out.run = unpacks ? unpack<u8> : pack<u8>;
  if (each == 2) d.out.run = unpacks ? unpack<u16> : pack<u16>;
  if (each == 4) d.out.run = unpacks ? unpack<u32> : pack<u32>;
}

}  // namespace

bool decode_integer(Decoder& d) {
  const Type type = d.peek_type();
  const bool moves = d.opcode == "mov" || d.opcode == "selp";
  if (is_float(type) && !moves) return false;
  if (d.opcode == "shf") {
    constexpr Handler kShifts[] = {
        apply<funnel_shift<false, false>>, apply<funnel_shift<true, false>>,
        apply<funnel_shift<false, true>>, apply<funnel_shift<true, true>>};
    d.out.run = kShifts[d.take_one_of({"l", "r"}) + 2 * d.take_one_of({"wrap", "clamp"})];
    d.simple(4, d.take_type());
    return true;
  }
  for (const Operation& operation : kOperations) {
    const std::string_view opcode = operation.name.substr(0, operation.name.find('.'));
    if (opcode != d.opcode) continue;
    if (opcode != operation.name && !d.take(operation.name.substr(opcode.size() + 1))) continue;
    d.take_type();
    if (d.operands.size() == 2 && opcode == "mov" &&
        (d.operands[0][0] == '{' || d.operands[1][0] == '{')) {
      decode_parts(d, type);
      return true;
    }
    d.simple(operation.operands, type);
    d.out.run = operation.make(type);
    if (type == Type::pred && opcode == "mov") d.out.run = apply<copy_predicate>;
    if (type == Type::pred && opcode == "not") d.out.run = apply<inverse_predicate>;
    return true;
  }
  return false;
}

}  // namespace ard::emulator
