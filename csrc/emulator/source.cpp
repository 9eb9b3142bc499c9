#include "emulator/source.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "emulator/interpreter.h"

namespace ard::emulator {
namespace {

bool blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool opens(char c) { return c == '{' || c == '[' || c == '('; }
bool closes(char c) { return c == '}' || c == ']' || c == ')'; }

uint64_t parse_integer(std::string_view digits, int base) {
  uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    throw Fault("not a number: " + std::string(digits));
  }
  return value;
}

}  // namespace

std::string without_comments(std::string text) {
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '"') {
      at = text.find('"', at + 1);
      if (at == std::string::npos) throw Fault("PTX: a string has no end");
    } else if (text.compare(at, 2, "//") == 0) {
      const size_t end = std::min(text.find('\n', at), text.size());
      std::fill(text.begin() + at, text.begin() + end, ' ');
    } else if (text.compare(at, 2, "/*") == 0) {
      const size_t end = text.find("*/", at + 2);
      if (end == std::string::npos) throw Fault("PTX: a comment has no end");
      std::replace_if(
          text.begin() + at, text.begin() + end + 2, [](char c) { return c != '\n'; }, ' ');
    }
  }
  return text;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::string_view> split(std::string_view text) {
  std::vector<std::string_view> parts;
  int depth = 0;
  size_t begin = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (opens(text[at])) ++depth;
    if (closes(text[at])) --depth;
    if (text[at] == ',' && depth == 0) {
      parts.push_back(trimmed(text.substr(begin, at - begin)));
      begin = at + 1;
    }
  }
  const std::string_view last = trimmed(text.substr(begin));
  if (!last.empty() || !parts.empty()) parts.push_back(last);
  return parts;
}

Type type_named(std::string_view name) {
  static constexpr struct {
    std::string_view name;
    Type type;
  } kTypes[] = {
      {"pred", Type::pred}, {"b8", Type::b8},         {"b16", Type::b16},   {"b32", Type::b32},
      {"b64", Type::b64},   {"u8", Type::u8},         {"u16", Type::u16},   {"u32", Type::u32},
      {"u64", Type::u64},   {"s8", Type::s8},         {"s16", Type::s16},   {"s32", Type::s32},
      {"s64", Type::s64},   {"f16", Type::f16},       {"bf16", Type::bf16}, {"f16x2", Type::f16x2},
      {"f32", Type::f32},   {"bf16x2", Type::bf16x2}, {"f64", Type::f64},
  };
  for (const auto& known : kTypes) {
    if (known.name == name) return known.type;
  }
  return Type::none;
}

bool parse_number(std::string_view text, Type type, uint64_t* bits) {
  const bool negative = !text.empty() && text[0] == '-';
  const std::string_view digits = negative ? text.substr(1) : text;
  if (digits.empty() || digits[0] < '0' || digits[0] > '9') return false;
  const bool wide = type == Type::f64;
  const char kind =
      digits[0] == '0' && digits.size() > 1 ? static_cast<char>(digits[1] | 0x20) : '\0';
  if ((kind == 'f' && digits.size() == 10) ||
      (kind == 'd' && digits.size() == 18)) {  // the bits of a float
    *bits = parse_integer(digits.substr(2), 16);
    if ((kind == 'd') == wide || (!is_float(type) && kind == 'f')) return true;
    float narrow;
    double value;
    if (kind == 'f') {
      std::memcpy(&narrow, bits, sizeof narrow);
      value = narrow;
      std::memcpy(bits, &value, sizeof value);
    } else {
      std::memcpy(&value, bits, sizeof value);
      narrow = static_cast<float>(value);
      *bits = 0;
      std::memcpy(bits, &narrow, sizeof narrow);
    }
    return true;
  }
  if (kind != 'x' && digits.find('.') != std::string_view::npos) {
    const double value = std::strtod(std::string(text).c_str(), nullptr);
    const float narrow = static_cast<float>(value);
    *bits = 0;
    std::memcpy(bits, wide ? static_cast<const void*>(&value) : &narrow,
                wide ? sizeof value : sizeof narrow);
    return true;
  }
  std::string_view whole = digits;
  if (whole.back() == 'U') whole.remove_suffix(1);
  uint64_t value = 0;
  if (kind == 'x')
    value = parse_integer(whole.substr(2), 16);
  else if (kind == 'b')
    value = parse_integer(whole.substr(2), 2);
  else if (kind)
    value = parse_integer(whole.substr(1), 8);
  else
    value = parse_integer(whole, 10);
  *bits = negative ? 0 - value : value;
  return true;
}

bool Reader::done() {
  while (at < text.size() && blank(text[at])) line += text[at++] == '\n';
  return at >= text.size();
}

std::string_view Reader::word() {
  done();
  const size_t begin = at;
  while (at < text.size() && !blank(text[at]) && !std::strchr("(){}[],;=", text[at])) ++at;
  return text.substr(begin, at - begin);
}

std::string_view Reader::until(char stop) {
  const size_t begin = at;
  const size_t end = text.find(stop, at);
  if (end == std::string_view::npos) {
    throw Fault("PTX line " + std::to_string(line) + ": no '" + stop + "' follows");
  }
  line += static_cast<unsigned>(std::count(text.begin() + begin, text.begin() + end + 1, '\n'));
  at = end + 1;
  return text.substr(begin, end - begin);
}

bool Reader::accept(char c) {
  if (peek() != c) return false;
  ++at;
  return true;
}

Variable parse_variable(std::string_view text) {
  Variable variable;
  const size_t equals = text.find('=');
  if (equals != std::string_view::npos) {
    std::string_view values = trimmed(text.substr(equals + 1));
    if (values.front() == '{') values = values.substr(1, values.size() - 2);
    variable.values = split(values);
  }
  Reader reader{text.substr(0, equals)};
  unsigned alignment = 0, count = 1, vector = 1;
  bool pointer = false;  // .ptr: its .align is that of what it points to
  while (!reader.done()) {
    if (reader.accept('[')) {
      const std::string_view length = trimmed(reader.until(']'));
      count *= length.empty() ? static_cast<unsigned>(variable.values.size())
                              : parse_integer(length, 10);
      continue;
    }
    const std::string_view word = reader.word();
    if (word.empty()) throw Fault("PTX: not a variable: " + std::string(text));
    if (word == ".align") {
      const unsigned given = static_cast<unsigned>(parse_integer(reader.word(), 10));
      if (!pointer) alignment = given;
    } else if (word == ".ptr")
      pointer = true;
    else if (word == ".v2")
      vector = 2;
    else if (word == ".v4")
      vector = 4;
    else if (word[0] != '.')
      variable.name = word;
    else if (const Type type = type_named(word.substr(1)); type != Type::none)
      variable.element = size_of(type);
  }
  variable.bytes = variable.element * vector * count;
  variable.alignment = alignment ? alignment : variable.element * vector;
  return variable;
}

}  // namespace ard::emulator
