// PTX text: comments, lists, numbers, variables.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "emulator/instruction.h"

namespace ard::emulator {

// Blanks in the place of comments: lines stay where they are.
std::string without_comments(std::string text);
std::string_view trimmed(std::string_view text);
// At the commas that no bracket encloses.
std::vector<std::string_view> split(std::string_view text);
// Of "{a, b}"; any other text is its own only element.
std::vector<std::string_view> elements(std::string_view text);
Type type_named(std::string_view name);  // "u32" and so on, else none
// The bits of a number as PTX writes it, if the text is one.
bool parse_number(std::string_view text, Type type, u64* bits);
u64 parse_count(std::string_view text);  // throws Fault
constexpr unsigned rounded_up(unsigned value, unsigned to) { return (value + to - 1) / to * to; }

// Reads a text from front to back.
struct Reader {
  std::string_view text;
  size_t at = 0;
  unsigned line = 1;

  bool done();  // behind blanks
  bool accept(char c);
  std::string_view word();            // up to a blank, a bracket or one of , ; =
  std::string_view until(char stop);  // and beyond it
  std::string_view braced();          // behind a "{", up to its "}" and beyond it
};

// ".align 16 .b8 name[512] = {1, 2}"
struct Variable {
  std::string_view name;
  unsigned alignment = 0, bytes = 0, element = 1;
  std::vector<std::string_view> values;
};
Variable parse_variable(std::string_view text);

}  // namespace ard::emulator
