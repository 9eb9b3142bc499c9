#include "emulator/text.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "emulator/interpreter.h"

namespace ard::emulator {
namespace {

bool blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

u64 parse_digits(std::string_view digits, int base) {
  u64 value = 0;
  const auto [end, error] =
      std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error != std::errc() || end != digits.data() + digits.size()) {
    throw Fault("PTX: not a number: " + std::string(digits));
  }
  return value;
}

u64 float_bits(double value, Type type) {
  u64 bits = 0;
  const float narrow = float(value);
  if (type == Type::f64)
    std::memcpy(&bits, &value, sizeof value);
  else
    std::memcpy(&bits, &narrow, sizeof narrow);
  return bits;
}

}  // namespace

std::string without_comments(std::string text) {
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '"') {
      at = text.find('"', at + 1);
      if (at == std::string::npos) throw Fault("PTX: a string has no end");
    } else if (text.compare(at, 2, "//") == 0) {
      std::fill(text.begin() + at, text.begin() + std::min(text.find('\n', at), text.size()), ' ');
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
    const char c = text[at];
    depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
    if (c != ',' || depth) continue;
    parts.push_back(trimmed(text.substr(begin, at - begin)));
    begin = at + 1;
  }
  const std::string_view last = trimmed(text.substr(begin));
  if (!last.empty() || !parts.empty()) parts.push_back(last);
  return parts;
}

std::vector<std::string_view> elements(std::string_view text) {
  if (text.empty() || text[0] != '{') return {text};
  return split(text.substr(1, text.size() - 2));
}

Type type_named(std::string_view name) {
  constexpr std::string_view kNames[] = {"",    "pred", "b8",    "b16",    "b32", "b64", "u8",
                                         "u16", "u32",  "u64",   "s8",     "s16", "s32", "s64",
                                         "f16", "bf16", "f16x2", "bf16x2", "f32", "f64"};
  const auto found = std::find(std::begin(kNames) + 1, std::end(kNames), name);
  return found == std::end(kNames) ? Type::none : Type(found - std::begin(kNames));
}

bool parse_number(std::string_view text, Type type, u64* bits) {
  const bool negative = !text.empty() && text[0] == '-';
  std::string_view digits = text.substr(negative ? 1 : 0);
  if (digits.empty() || digits[0] < '0' || digits[0] > '9') return false;
  const char kind = digits[0] == '0' && digits.size() > 1 ? char(digits[1] | 0x20) : '\0';
  if ((kind == 'f' && digits.size() == 10) ||
      (kind == 'd' && digits.size() == 18)) {  // the bits of a float
    *bits = parse_digits(digits.substr(2), 16);
    const bool converts = kind == 'f' ? type == Type::f64 : type == Type::f32;
    if (!converts) return true;
    float narrow;
    double wide;
    std::memcpy(&narrow, bits, sizeof narrow);
    std::memcpy(&wide, bits, sizeof wide);
    *bits = float_bits(kind == 'f' ? narrow : wide, type);
    return true;
  }
  if (kind != 'x' && digits.find('.') != std::string_view::npos) {
    *bits = float_bits(std::strtod(std::string(text).c_str(), nullptr), type);
    return true;
  }
  if (digits.back() == 'U') digits.remove_suffix(1);
  const int base = kind == 'x'                             ? 16
                   : kind == 'b'                           ? 2
                   : digits.size() > 1 && digits[0] == '0' ? 8
                                                           : 10;
  const u64 value = parse_digits(digits.substr(base == 16 || base == 2 ? 2 : 0), base);
  *bits = negative ? 0 - value : value;
  return true;
}

u64 parse_count(std::string_view text) { return parse_digits(trimmed(text), 10); }

bool Reader::done() {
  while (at < text.size() && blank(text[at])) line += text[at++] == '\n';
  return at >= text.size();
}

bool Reader::accept(char c) {
  if (done() || text[at] != c) return false;
  ++at;
  return true;
}

std::string_view Reader::word() {
  done();
  const size_t begin = at;
  while (at < text.size() && !blank(text[at]) && !std::strchr("(){}[],;=", text[at])) ++at;
  return text.substr(begin, at - begin);
}

std::string_view Reader::until(char stop) {
  const size_t begin = at, end = text.find(stop, at);
  if (end == std::string_view::npos) {
    throw Fault("PTX line " + std::to_string(line) + ": no '" + stop + "' follows");
  }
  line += unsigned(std::count(text.begin() + begin, text.begin() + end + 1, '\n'));
  at = end + 1;
  return text.substr(begin, end - begin);
}

std::string_view Reader::braced() {
  const size_t begin = at;
  for (int depth = 1; depth > 0; ++at) {
    if (at >= text.size()) throw Fault("PTX: a '}' is missing");
    depth += (text[at] == '{') - (text[at] == '}');
    line += text[at] == '\n';
  }
  return text.substr(begin, at - 1 - begin);
}

Variable parse_variable(std::string_view text) {
  Variable variable;
  const size_t equals = text.find('=');
  if (equals != std::string_view::npos)
    variable.values = elements(trimmed(text.substr(equals + 1)));
  Reader reader{text.substr(0, equals)};
  unsigned count = 1, vector = 1;
  bool pointer = false;  // .ptr: its .align is that of what it points to
  while (!reader.done()) {
    if (reader.accept('[')) {
      const std::string_view length = trimmed(reader.until(']'));
      count *= length.empty() ? unsigned(variable.values.size()) : unsigned(parse_count(length));
      continue;
    }
    const std::string_view word = reader.word();
    if (word.empty()) throw Fault("PTX: not a variable: " + std::string(text));
    if (word == ".align") {
      const unsigned alignment = unsigned(parse_count(reader.word()));
      if (!pointer) variable.alignment = alignment;
    } else if (word == ".v2" || word == ".v4") {
      vector = word == ".v2" ? 2 : 4;
    } else if (word[0] != '.') {
      variable.name = word;
    } else if (const Type type = type_named(word.substr(1)); type != Type::none) {
      variable.element = size_of(type);
    }
    pointer |= word == ".ptr";
  }
  variable.bytes = variable.element * vector * count;
  if (!variable.alignment) variable.alignment = variable.element * vector;
  return variable;
}

}  // namespace ard::emulator
