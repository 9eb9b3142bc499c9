// mov, selp and setp.
#include "emulator/decoder.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

Handler copy(Type type) {
  if (type == Type::pred) {  // a predicate may be set by any number
    return [](Warp& warp, const Instruction& i) {
      unary<bool, uint64_t>(warp, i, [](uint64_t a) { return a != 0; });
    };
  }
  return by_size(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) { unary<T, T>(warp, i, [](T a) { return a; }); };
  });
}

Handler select(Type type) {
  return by_size(type, [](auto tag) -> Handler {
    using T = typename decltype(tag)::type;
    return [](Warp& warp, const Instruction& i) {
      ternary<T, T, T, uint8_t>(warp, i, [](T a, T b, uint8_t chosen) { return chosen ? a : b; });
    };
  });
}

// mov d, {parts}; operand 0 is the destination.
template <class T>
void pack(Warp& warp, const Instruction& i) {
  warp.each([&](unsigned lane) {
    uint64_t whole = 0;
    for (unsigned part = 0; part < i.vector; ++part) {
      whole |= static_cast<uint64_t>(get<T>(warp.slot(i.operands[1 + part])[lane]))
               << (8 * sizeof(T) * part);
    }
    warp.out(i.operands[0])[lane] = whole;
  });
}
// mov {parts}, a; operand 5 is the source.
template <class T>
void unpack(Warp& warp, const Instruction& i) {
  warp.each([&](unsigned lane) {
    const uint64_t whole = warp.slot(i.operands[5])[lane];
    for (unsigned part = 0; part < i.vector; ++part) {
      put<T>(warp.out(i.operands[part])[lane], static_cast<T>(whole >> (8 * sizeof(T) * part)));
    }
  });
}

void decode_parts(Decoder& d, Type type) {
  const bool unpacks = d.operands[0][0] == '{';
  const std::string_view list = d.operands[unpacks ? 0 : 1];
  const auto parts = split(list.substr(1, list.size() - 2));
  if (parts.size() != 2 && parts.size() != 4) return;
  d.out.vector = static_cast<uint8_t>(parts.size());
  if (unpacks) {
    for (size_t part = 0; part < parts.size(); ++part)
      d.out.operands[part] = d.destination(parts[part]);
    d.out.operands[5] = d.source(d.operands[1], type);
  } else {
    d.out.operands[0] = d.destination(d.operands[0]);
    for (size_t part = 0; part < parts.size(); ++part)
      d.out.operands[1 + part] = d.source(parts[part], Type::b32);
  }
  switch (size_of(type) / parts.size()) {
    case 1:
      d.out.run = unpacks ? unpack<uint8_t> : pack<uint8_t>;
      break;
    case 2:
      d.out.run = unpacks ? unpack<uint16_t> : pack<uint16_t>;
      break;
    case 4:
      d.out.run = unpacks ? unpack<uint32_t> : pack<uint32_t>;
      break;
  }
}

}  // namespace

bool decode_move(Decoder& d) {
  if (d.opcode == "mov") {
    const Type type = d.take_type();
    d.expect(2);
    if (d.operands[0][0] == '{' || d.operands[1][0] == '{') {
      decode_parts(d, type);
      return true;
    }
    d.simple(2, type);
    d.out.run = copy(type);
    return true;
  }
  if (d.opcode == "selp") {
    const Type type = d.take_type();
    d.simple(4, type);
    d.out.run = select(type);
    return true;
  }
  return false;
}

}  // namespace ard::emulator
