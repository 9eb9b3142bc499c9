#include "emulator/decoder.h"

#include <algorithm>

#include "emulator/machine.h"

namespace ard::emulator {
namespace {

// Launches have one dimension: of y and z there is one, number 0.
constexpr std::pair<std::string_view, Special> kSpecials[] = {
    {"%tid.x", Special::tid},
    {"%ntid.x", Special::ntid},
    {"%ctaid.x", Special::ctaid},
    {"%nctaid.x", Special::nctaid},
    {"%clusterid.x", Special::clusterid},
    {"%nclusterid.x", Special::nclusterid},
    {"%cluster_ctaid.x", Special::cluster_ctarank},
    {"%cluster_nctaid.x", Special::cluster_nctarank},
    {"%cluster_ctarank", Special::cluster_ctarank},
    {"%cluster_nctarank", Special::cluster_nctarank},
    {"%laneid", Special::laneid},
    {"%warpid", Special::warpid},
    {"%lanemask_eq", Special::lanemask_eq},
    {"%lanemask_lt", Special::lanemask_lt},
    {"%lanemask_le", Special::lanemask_le},
    {"%lanemask_gt", Special::lanemask_gt},
    {"%lanemask_ge", Special::lanemask_ge},
};
constexpr std::string_view kFlat[] = {"%tid",  "%ctaid",  "%clusterid",  "%cluster_ctaid",
                                      "%ntid", "%nctaid", "%nclusterid", "%cluster_nctaid"};

}  // namespace

void Decoder::declare_registers(std::string_view names) {
  for (const std::string_view name : split(names)) {
    const size_t bracket = name.find('<');
    const Operand first = Operand(code_.registers);
    if (bracket == std::string_view::npos) {
      scopes_.back().names[name] = first;
      ++code_.registers;
    } else {
      const unsigned count =
          unsigned(parse_count(name.substr(bracket + 1, name.size() - bracket - 2)));
      scopes_.back().numbered[name.substr(0, bracket)] = {first, count};
      code_.registers += count;
    }
  }
}

Operand Decoder::find_register(std::string_view name) const {
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (const auto found = scope->names.find(name); found != scope->names.end())
      return found->second;
    const auto many =
        digits < name.size() ? scope->numbered.find(name.substr(0, digits)) : scope->numbered.end();
    if (many == scope->numbered.end()) continue;
    const u64 number = parse_count(name.substr(digits));
    if (number < many->second.second) return many->second.first + Operand(number);
  }
  return kNoOperand;
}

Operand Decoder::special(std::string_view name) {
  if (const auto known = specials_.find(name); known != specials_.end()) return known->second;
  const auto named = [&](const auto& each) { return each.first == name; };
  const auto found = std::find_if(std::begin(kSpecials), std::end(kSpecials), named);
  const auto flat = std::find(std::begin(kFlat), std::end(kFlat), name.substr(0, name.find('.')));
  const bool y_or_z = flat != std::end(kFlat) && (name.back() == 'y' || name.back() == 'z');
  if (found == std::end(kSpecials) && !y_or_z) throw Fault("unknown register " + std::string(name));
  const Special which = !y_or_z ? found->second : flat - kFlat < 4 ? Special::zero : Special::one;
  code_.specials.emplace_back(which, Operand(code_.registers));
  return specials_[name] = Operand(code_.registers++);
}

Operand Decoder::constant(u64 value) {
  const auto [found, made] =
      constants_.try_emplace(value, ~Operand(code_.constants.size() / kLanes));
  if (made) code_.constants.resize(code_.constants.size() + kLanes, value);
  return found->second;
}

Operand Decoder::variable(std::string_view text) {
  const size_t plus = text.find('+');
  const auto found = symbols.find(trimmed(text.substr(0, plus)));
  if (found == symbols.end()) throw Fault("unknown name " + std::string(text));
  const u64 offset = plus == std::string_view::npos ? 0 : parse_count(text.substr(plus + 1));
  if (!found->second.dynamic) return constant(found->second.address + offset);
  dynamic_.push_back(~Operand(code_.constants.size() / kLanes));
  code_.constants.resize(code_.constants.size() + kLanes, kSharedStart + offset);
  return dynamic_.back();
}

void Decoder::finish() {
  for (const Operand operand : dynamic_) {
    u64* lanes = code_.constants.data() + size_t{kLanes} * ~operand;
    std::for_each(lanes, lanes + kLanes, [&](u64& value) { value += code_.dynamic_offset(); });
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
  const auto found =
      std::find_if(names.begin(), names.end(), [&](std::string_view name) { return take(name); });
  return found == names.end() ? -1 : int(found - names.begin());
}

void Decoder::drop(std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) take(name);
}

Type Decoder::peek_type() const {
  for (const std::string_view modifier : modifiers_) {
    if (const Type type = type_named(modifier); type != Type::none) return type;
  }
  return Type::none;
}

Type Decoder::take_type() {
  const Type type = peek_type();
  const auto is_it = [&](std::string_view modifier) { return type_named(modifier) == type; };
  if (type != Type::none)
    modifiers_.erase(std::find_if(modifiers_.begin(), modifiers_.end(), is_it));
  return type;
}

void Decoder::expect(size_t count) const {
  if (operands.size() != count) throw Fault("expected " + std::to_string(count) + " operands");
}

Operand Decoder::destination(std::string_view text) {
  ++out.destinations;
  if (text == "_") return Operand(code_.registers++);
  const Operand found = find_register(text);
  if (found == kNoOperand) throw Fault("unknown register " + std::string(text));
  return found;
}

void Decoder::destinations(std::string_view text) {
  const size_t bar = text.find('|');
  out.operands[0] = destination(trimmed(text.substr(0, bar)));
  if (bar != std::string_view::npos) out.operands[1] = destination(trimmed(text.substr(bar + 1)));
}

Operand Decoder::source(std::string_view text, Type type) {
  if (text.empty()) throw Fault("an operand is missing");
  if (const Operand found = find_register(text); found != kNoOperand) return found;
  u64 bits;
  if (text[0] == '%') return special(text);
  return parse_number(text, type, &bits) ? constant(bits) : variable(text);
}

bool Decoder::negatable(std::string_view text, Operand* operand) {
  const bool negated = !text.empty() && text[0] == '!';
  *operand = source(text.substr(negated), Type::pred);
  return negated;
}

void Decoder::simple(size_t count, Type type) {
  expect(count);
  out.operands[0] = destination(operands[0]);
  for (size_t at = 1; at < 4; ++at)
    out.operands[at] = source(operands[std::min(at, count - 1)], type);
  if (count == 5) out.operands[4] = source(operands[4], type);
}

void Decoder::address(std::string_view text, unsigned place, Space space) {
  if (text.size() < 3 || text.front() != '[' || text.back() != ']') throw Fault("not an address");
  const std::string_view inner = trimmed(text.substr(1, text.size() - 2));
  const size_t plus = inner.find('+');
  const std::string_view base = trimmed(inner.substr(0, plus));
  out.operands[place] = find_register(base);
  if (out.operands[place] == kNoOperand) {
    const auto found = symbols.find(base);
    if (found != symbols.end() && found->second.space != space)
      throw Fault("the variable lies in another space");
    out.operands[place] = source(inner, Type::b64);
  } else if (u64 offset; plus != std::string_view::npos) {
    if (!parse_number(trimmed(inner.substr(plus + 1)), Type::s64, &offset))
      throw Fault("not an offset");
    out.offset = s32(offset);
  }
}

void Decoder::note_access(Space space, unsigned bytes) {
  if (space == Space::shared || space == Space::generic)
    code_.granule = std::min(code_.granule, bytes);
}

void Decoder::decode(std::string_view text) {
  out = Instruction();
  form = FloatForm();
  label = {};
  modifiers_.clear();
  Reader reader{text};
  if (reader.accept('@')) out.guard_negated = negatable(reader.word(), &out.guard);
  std::string_view name = reader.word();
  operands = split(text.substr(reader.at));
  opcode = name.substr(0, name.find('.'));
  while (name.find('.') != std::string_view::npos) {
    name.remove_prefix(name.find('.') + 1);
    modifiers_.push_back(name.substr(0, name.find('.')));
  }
  const bool known = decode_integer(*this) || decode_float(*this) || decode_compare(*this) ||
                     decode_memory(*this) || decode_convert(*this) || decode_control(*this);
  if (!known) throw Fault("unknown instruction");
  if (!modifiers_.empty()) throw Fault("unknown modifier ." + std::string(modifiers_[0]));
  if (!out.run && (out.control == Control::none || out.control == Control::warp))
    throw Fault("unknown type");
}

}  // namespace ard::emulator
