// PTX text: comments, lists, numbers.
#pragma once

#include <cstdint>
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
// "u32" and so on, else none.
Type type_named(std::string_view name);
// The bits of a number as PTX writes it, if the text is one.
bool parse_number(std::string_view text, Type type, uint64_t* bits);

// Reads a text from front to back.
struct Reader {
  std::string_view text;
  size_t at = 0;
  unsigned line = 1;

  bool done();  // after blanks
  char peek() { return done() ? '\0' : text[at]; }
  std::string_view word();            // up to a blank or bracket or one of , ; =
  std::string_view until(char stop);  // and beyond it
  bool accept(char c);
};

// ".align 16 .b8 name[512] = {1, 2}"
struct Variable {
  std::string_view name;
  unsigned alignment = 1, bytes = 0, element = 1;
  std::vector<std::string_view> values;
};
Variable parse_variable(std::string_view text);

}  // namespace ard::emulator
