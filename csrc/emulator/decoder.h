// From one statement of PTX to an instruction. A family of instructions has a decode_* function,
// which answers whether the opcode is one of its own. A modifier counts as understood when a
// decoder takes it; one that nobody takes makes the instruction unsupported.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "emulator/instruction.h"
#include "emulator/source.h"

namespace ard::emulator {

// Names of variables and where they are.
struct Symbol {
  Space space = Space::generic;
  uint64_t address = 0;
  bool dynamic = false;  // of dynamic shared memory, which lies behind the static
};

// What an instruction does to floating point, for the contraction.
struct FloatForm {
  enum Kind : uint8_t { other, multiply, add, subtract } kind = other;
  Type type = Type::none;
  bool ftz = false;
};

class Decoder {
 public:
  Decoder(Code& code, std::unordered_map<std::string_view, Symbol>& symbols)
      : code_(code), symbols_(symbols) {}

  // Declarations and scopes of a body.
  void declare_registers(std::string_view names);  // "%r<9>" or "a, b"
  void open_scope() { scopes_.emplace_back(); }
  void close_scope() { scopes_.pop_back(); }

  // The next instruction; throws Fault where an operand is unknown, or with why it is not
  // supported.
  struct Result {
    Instruction instruction;
    FloatForm form;
    std::string_view label;  // of a branch: label or name of a table
  };
  Result decode(std::string_view text);
  // Writes the addresses that were not known before all variables were.
  void finish();

  // --- for the families
  std::string_view opcode;
  std::vector<std::string_view> operands;
  Instruction out;
  FloatForm form;
  std::string_view label;

  bool has(std::string_view modifier) const;
  bool take(std::string_view modifier);
  template <class... Names>
  void drop(Names... names) {
    (take(names), ...);
  }
  Type take_type();  // the first one that is left, else none
  Type peek_type() const;
  Rounding take_rounding();
  // The name of the list that is a modifier, as its index, else -1.
  int take_one_of(std::initializer_list<std::string_view> names);

  void expect(size_t count) const;
  Operand destination(std::string_view text);
  Operand source(std::string_view text, Type type);
  Operand predicate(std::string_view text);
  Operand constant(uint64_t value);
  // Destination and sources of one type, `count` in all.
  void simple(size_t count, Type type);
  // "[register+offset]" or "[variable+offset]".
  void address(std::string_view text, unsigned place, Space space);
  const Symbol* symbol(std::string_view name) const;
  // That the instruction touches so many bytes there: what the race check of shared memory has to
  // tell apart.
  void note_access(Space space, unsigned bytes);

 private:
  struct Scope {
    struct Many {
      Operand first;
      unsigned count;
    };
    std::unordered_map<std::string_view, Operand> names;
    std::unordered_map<std::string_view, Many> numbered;
  };

  Operand find_register(std::string_view name) const;  // or kNoOperand
  Operand special(std::string_view name);              // or kNoOperand
  Operand variable(std::string_view text);             // "name" or "name+offset"

  Code& code_;
  std::unordered_map<std::string_view, Symbol>& symbols_;
  std::vector<Scope> scopes_ = std::vector<Scope>(1);
  std::unordered_map<uint64_t, Operand> constants_;
  std::unordered_map<std::string_view, Operand> specials_;
  std::vector<Operand> dynamic_;  // constants that are to be moved behind the static shared memory
  std::vector<std::string_view> modifiers_;
};

// Of a type, the handler that a family has for it; null: none.
bool decode_integer(Decoder& decoder);
bool decode_bits(Decoder& decoder);
bool decode_float(Decoder& decoder);
bool decode_approximate(Decoder& decoder);
bool decode_half(Decoder& decoder);
bool decode_compare(Decoder& decoder);
bool decode_convert(Decoder& decoder);
bool decode_move(Decoder& decoder);
bool decode_memory(Decoder& decoder);
bool decode_control(Decoder& decoder);
bool decode_warp(Decoder& decoder);

// a * b + c with the product (1) or the addend (2) negated: the handler that contraction puts in.
Handler fused(Type type, bool ftz);

template <class T>
struct Tag {
  using type = T;
};
template <class F>
Handler by_integer(Type type, F make) {
  switch (type) {
    case Type::b16:
    case Type::u16:
      return make(Tag<uint16_t>());
    case Type::s16:
      return make(Tag<int16_t>());
    case Type::b32:
    case Type::u32:
      return make(Tag<uint32_t>());
    case Type::s32:
      return make(Tag<int32_t>());
    case Type::b64:
    case Type::u64:
      return make(Tag<uint64_t>());
    case Type::s64:
      return make(Tag<int64_t>());
    default:
      return nullptr;
  }
}
template <class F>
Handler by_size(Type type, F make) {
  switch (size_of(type)) {
    case 1:
      return make(Tag<uint8_t>());
    case 2:
      return make(Tag<uint16_t>());
    case 4:
      return make(Tag<uint32_t>());
    default:
      return make(Tag<uint64_t>());
  }
}

}  // namespace ard::emulator
