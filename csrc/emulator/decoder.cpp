#include "emulator/decoder.h"

#include <algorithm>

#include "emulator/interpreter.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

constexpr struct {
  std::string_view name;
  Special special;
} kSpecials[] = {
    {"%tid.x", Special::tid},
    {"%ntid.x", Special::ntid},
    {"%ctaid.x", Special::ctaid},
    {"%nctaid.x", Special::nctaid},
    {"%laneid", Special::laneid},
    {"%warpid", Special::warpid},
    {"%lanemask_eq", Special::lanemask_eq},
    {"%lanemask_lt", Special::lanemask_lt},
    {"%lanemask_le", Special::lanemask_le},
    {"%lanemask_gt", Special::lanemask_gt},
    {"%lanemask_ge", Special::lanemask_ge},
    {"%cluster_ctarank", Special::cluster_ctarank},
    {"%cluster_ctaid.x", Special::cluster_ctarank},
    {"%cluster_nctarank", Special::cluster_nctarank},
    {"%cluster_nctaid.x", Special::cluster_nctarank},
    {"%clusterid.x", Special::clusterid},
    {"%nclusterid.x", Special::nclusterid},
};
constexpr std::string_view kFlatIndices[] = {"%tid", "%ctaid", "%cluster_ctaid", "%clusterid"};
constexpr std::string_view kFlatCounts[] = {"%ntid", "%nctaid", "%cluster_nctaid", "%nclusterid"};

// Registers are filled with this before a launch: a signalling NaN, no address.
// (Reads of registers that nothing has written are not looked for: nvcc writes none.)

size_t trailing_digits(std::string_view name) {
  size_t count = 0;
  while (count < name.size() && name[name.size() - 1 - count] >= '0' &&
         name[name.size() - 1 - count] <= '9')
    ++count;
  return count;
}

unsigned number_of(std::string_view digits) {
  unsigned value = 0;
  for (const char c : digits) value = value * 10 + static_cast<unsigned>(c - '0');
  return value;
}

}  // namespace

void Decoder::declare_registers(std::string_view names) {
  Scope& scope = scopes_.back();
  for (const std::string_view name : split(names)) {
    const size_t bracket = name.find('<');
    const Operand first = static_cast<Operand>(code_.registers);
    if (bracket == std::string_view::npos) {
      scope.names[name] = first;
      ++code_.registers;
      continue;
    }
    const unsigned count = number_of(name.substr(bracket + 1, name.size() - bracket - 2));
    scope.numbered[trimmed(name.substr(0, bracket))] = {first, count};
    code_.registers += count;
  }
}

Operand Decoder::find_register(std::string_view name) const {
  const size_t digits = trailing_digits(name);
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (const auto found = scope->names.find(name); found != scope->names.end())
      return found->second;
    if (!digits) continue;
    const auto many = scope->numbered.find(name.substr(0, name.size() - digits));
    if (many == scope->numbered.end()) continue;
    const unsigned number = number_of(name.substr(name.size() - digits));
    if (number < many->second.count) return many->second.first + static_cast<Operand>(number);
  }
  return kNoOperand;
}

Operand Decoder::special(std::string_view name) {
  if (const auto known = specials_.find(name); known != specials_.end()) return known->second;
  const auto make = [&](Special which) {
    const Operand slot = static_cast<Operand>(code_.registers++);
    code_.specials.emplace_back(which, slot);
    return specials_[name] = slot;
  };
  for (const auto& each : kSpecials) {
    if (each.name == name) return make(each.special);
  }
  // Launches have one dimension: of y and z there is one, number 0.
  const std::string_view base = name.substr(0, name.find('.'));
  if (base.size() + 2 != name.size() || (name.back() != 'y' && name.back() != 'z'))
    return kNoOperand;
  for (const std::string_view index : kFlatIndices) {
    if (index == base) return make(Special::zero);
  }
  for (const std::string_view count : kFlatCounts) {
    if (count == base) return make(Special::one);
  }
  return kNoOperand;
}

const Symbol* Decoder::symbol(std::string_view name) const {
  const auto found = symbols_.find(name);
  return found == symbols_.end() ? nullptr : &found->second;
}

Operand Decoder::constant(uint64_t value) {
  const auto [found, made] = constants_.try_emplace(value, 0);
  if (made) {
    found->second = ~static_cast<Operand>(code_.constants.size() / kLanes);
    code_.constants.resize(code_.constants.size() + kLanes, value);
  }
  return found->second;
}

Operand Decoder::variable(std::string_view text) {
  const size_t plus = text.find('+');
  const Symbol* found = symbol(trimmed(text.substr(0, plus)));
  if (!found) throw Fault("unknown name " + std::string(text));
  uint64_t offset = 0;
  if (plus != std::string_view::npos &&
      !parse_number(trimmed(text.substr(plus + 1)), Type::s64, &offset)) {
    throw Fault("not an offset: " + std::string(text));
  }
  if (!found->dynamic) return constant(found->address + offset);
  const Operand operand = ~static_cast<Operand>(code_.constants.size() / kLanes);
  code_.constants.resize(code_.constants.size() + kLanes, offset);
  dynamic_.push_back(operand);
  return operand;
}

void Decoder::finish() {
  const unsigned alignment = code_.dynamic_alignment;
  const unsigned begin =
      kSharedStart + (code_.static_shared + alignment - 1) / alignment * alignment;
  for (const Operand operand : dynamic_) {
    uint64_t* lanes = code_.constants.data() + size_t{kLanes} * ~operand;
    std::for_each(lanes, lanes + kLanes, [&](uint64_t& value) { value += begin; });
  }
}

bool Decoder::has(std::string_view modifier) const {
  return std::find(modifiers_.begin(), modifiers_.end(), modifier) != modifiers_.end();
}

bool Decoder::take(std::string_view modifier) {
  const auto found = std::find(modifiers_.begin(), modifiers_.end(), modifier);
  if (found == modifiers_.end()) return false;
  modifiers_.erase(found);
  return true;
}

int Decoder::take_one_of(std::initializer_list<std::string_view> names) {
  int index = 0;
  for (const std::string_view name : names) {
    if (take(name)) return index;
    ++index;
  }
  return -1;
}

Type Decoder::peek_type() const {
  for (const std::string_view modifier : modifiers_) {
    if (const Type type = type_named(modifier); type != Type::none) return type;
  }
  return Type::none;
}

Type Decoder::take_type() {
  const auto names_type = [](std::string_view name) { return type_named(name) != Type::none; };
  const auto found = std::find_if(modifiers_.begin(), modifiers_.end(), names_type);
  if (found == modifiers_.end()) return Type::none;
  const Type type = type_named(*found);
  modifiers_.erase(found);
  return type;
}

Rounding Decoder::take_rounding() {
  return static_cast<Rounding>(take_one_of({"rn", "rz", "rm", "rp"}) + 1);
}

void Decoder::expect(size_t count) const {
  if (operands.size() != count) throw Fault("expected " + std::to_string(count) + " operands");
}

Operand Decoder::destination(std::string_view text) {
  ++out.destinations;
  if (text == "_") return static_cast<Operand>(code_.registers++);
  const Operand found = find_register(text);
  if (found == kNoOperand) throw Fault("unknown register " + std::string(text));
  return found;
}

Operand Decoder::source(std::string_view text, Type type) {
  if (text.empty()) throw Fault("an operand is missing");
  if (const Operand found = find_register(text); found != kNoOperand) return found;
  if (text[0] == '%') {
    const Operand found = special(text);
    if (found == kNoOperand) throw Fault("unknown register " + std::string(text));
    return found;
  }
  uint64_t bits;
  return parse_number(text, type, &bits) ? constant(bits) : variable(text);
}

Operand Decoder::predicate(std::string_view text) { return source(text, Type::pred); }

void Decoder::simple(size_t count, Type type) {
  expect(count);
  out.operands[0] = destination(operands[0]);
  for (size_t at = 1; at < count; ++at) out.operands[at] = source(operands[at], type);
}

void Decoder::address(std::string_view text, unsigned place, Space space) {
  if (text.size() < 3 || text.front() != '[' || text.back() != ']') throw Fault("not an address");
  const std::string_view inner = trimmed(text.substr(1, text.size() - 2));
  const size_t plus = inner.find('+');
  const std::string_view base = trimmed(inner.substr(0, plus));
  out.operands[place] = find_register(base);
  if (out.operands[place] != kNoOperand) {
    uint64_t offset = 0;
    if (plus != std::string_view::npos &&
        !parse_number(trimmed(inner.substr(plus + 1)), Type::s64, &offset)) {
      throw Fault("not an offset");
    }
    out.offset = static_cast<int32_t>(offset);
    return;
  }
  out.operands[place] = source(inner, Type::b64);
  const Symbol* found = symbol(base);
  if (found && found->space != space) throw Fault("the variable lies in another space");
}

void Decoder::note_access(Space space, unsigned bytes) {
  if (space == Space::shared || space == Space::generic)
    code_.granule = std::min(code_.granule, bytes);
}

Decoder::Result Decoder::decode(std::string_view text) {
  out = Instruction();
  form = FloatForm();
  label = {};
  modifiers_.clear();
  Reader reader{text};
  if (reader.accept('@')) {
    out.guard_negated = reader.accept('!');
    out.guard = predicate(reader.word());
  }
  std::string_view name = reader.word();
  operands = split(text.substr(reader.at));
  opcode = name.substr(0, name.find('.'));
  while (name.find('.') != std::string_view::npos) {
    name.remove_prefix(name.find('.') + 1);
    modifiers_.push_back(name.substr(0, name.find('.')));
  }
  const bool known = decode_move(*this) || decode_integer(*this) || decode_float(*this) ||
                     decode_compare(*this) || decode_memory(*this) || decode_control(*this) ||
                     decode_warp(*this) || decode_convert(*this) || decode_bits(*this) ||
                     decode_approximate(*this) || decode_half(*this);
  if (!known) throw Fault("unknown instruction");
  if (!modifiers_.empty()) throw Fault("unknown modifier ." + std::string(modifiers_[0]));
  if (!out.run && (out.control == Control::none || out.control == Control::warp))
    throw Fault("unknown type");
  return {out, form, label};
}

}  // namespace ard::emulator
