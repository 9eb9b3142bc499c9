// From one statement of PTX to an instruction. A family of instructions has a decode_* function,
// which answers whether the opcode is one of its own. A modifier counts as understood when a
// decoder takes it; one that nobody takes makes the instruction unsupported.
#pragma once

#include <initializer_list>
#include <unordered_map>

#include "emulator/instruction.h"
#include "emulator/text.h"

namespace ard::emulator {

struct Symbol {
  Space space = Space::generic;
  u64 address = 0;
  bool dynamic = false;  // in dynamic shared memory, whose place is known when all variables are
};

// What an instruction does to floating point, for the contraction.
struct FloatForm {
  enum Kind : u8 { other, multiply, add, subtract } kind = other;
  Type type = Type::none;
  bool ftz = false;
};

class Decoder {
 public:
  explicit Decoder(Code& code) : code_(code) {}

  void declare_registers(std::string_view names);  // "%r<9>" or "a, b"
  void open_scope() { scopes_.emplace_back(); }
  void close_scope() { scopes_.pop_back(); }
  std::unordered_map<std::string_view, Symbol> symbols;

  // The next instruction into `out`, `form` and `label`; throws Fault with why it is not supported.
  void decode(std::string_view text);
  // Places dynamic shared memory.
  void finish();

  Instruction out;
  FloatForm form;
  std::string_view label;  // of a branch: label, or name of a list of them

  // For the families.
  std::string_view opcode;
  std::vector<std::string_view> operands;
  bool has(std::string_view modifier) const;
  bool take(std::string_view modifier);
  int take_one_of(std::initializer_list<std::string_view> names);  // its index, else -1
  void drop(std::initializer_list<std::string_view> names);
  Type peek_type() const;  // the first one that is left, else none
  Type take_type();
  Rounding take_rounding() { return Rounding(take_one_of({"rn", "rz", "rm", "rp"}) + 1); }
  void expect(size_t count) const;
  Operand destination(std::string_view text);
  void destinations(std::string_view text);  // "p" or "p|q": the first operands
  Operand source(std::string_view text, Type type);
  bool negatable(std::string_view text, Operand* operand);  // "{!}p"; whether it is negated
  void simple(size_t count, Type type);  // destination and sources, `count` in all
  // "[register+offset]" or "[variable+offset]".
  void address(std::string_view text, unsigned place, Space space);
  // What the race check of shared memory has to tell apart.
  void note_access(Space space, unsigned bytes);

 private:
  struct Scope {
    std::unordered_map<std::string_view, Operand> names;
    std::unordered_map<std::string_view, std::pair<Operand, unsigned>> numbered;  // first, count
  };
  Operand find_register(std::string_view name) const;  // or kNoOperand
  Operand special(std::string_view name);
  Operand constant(u64 value);
  Operand variable(std::string_view text);

  Code& code_;
  std::vector<Scope> scopes_ = std::vector<Scope>(1);
  std::unordered_map<u64, Operand> constants_;
  std::unordered_map<std::string_view, Operand> specials_;
  std::vector<Operand> dynamic_;  // constants that are relative to dynamic shared memory
  std::vector<std::string_view> modifiers_;
};

bool decode_integer(Decoder& decoder);
bool decode_float(Decoder& decoder);
bool decode_compare(Decoder& decoder);
bool decode_convert(Decoder& decoder);
bool decode_memory(Decoder& decoder);
bool decode_control(Decoder& decoder);

// The handler of a contraction, a * b + c; mode 1 negates the product, 2 the addend.
Handler fused(Type type, bool ftz);

// An opcode, the operands with the destination, and the handler of each type or null.
struct Operation {
  std::string_view name;
  size_t operands;
  Handler (*make)(Type);
};

template <class T>
struct Tag {
  using type = T;
};
// make(Tag<T>()) of the integer that the type is; null if it is none of at least 16 bits.
template <class F>
Handler by_integer(Type type, F make) {
  const bool is_signed = type >= Type::s16 && type <= Type::s64;
  if (is_float(type) || size_of(type) == 1) return nullptr;
  if (size_of(type) == 2) return is_signed ? make(Tag<s16>()) : make(Tag<u16>());
  if (size_of(type) == 4) return is_signed ? make(Tag<s32>()) : make(Tag<u32>());
  return is_signed ? make(Tag<s64>()) : make(Tag<u64>());
}
template <class F>
Handler by_size(Type type, F make) {
  if (size_of(type) <= 2) return size_of(type) == 1 ? make(Tag<u8>()) : make(Tag<u16>());
  return size_of(type) == 4 ? make(Tag<u32>()) : make(Tag<u64>());
}

}  // namespace ard::emulator
