// A kernel's PTX, and its instructions once a launch or a question has had it decoded.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "emulator/decoder.h"
#include "emulator/instruction.h"
#include "emulator/interpreter.h"

namespace ard::emulator {

// What the kernels of a module share.
struct ModuleData {
  std::string source;  // without comments: all string_views of the module point into it
  int target = 0;
  std::unordered_map<std::string_view, Symbol> symbols;  // of .global and .const
  std::unordered_map<std::string_view, Variable> shared;
  std::vector<std::unique_ptr<uint64_t[]>> storage;  // of symbols
  GlobalMemory memory;
};

struct KernelData {
  std::shared_ptr<const ModuleData> module;
  std::string name;
  std::string_view body;  // between the braces
  unsigned line = 0;      // where it begins
  unsigned max_threads = 0;
  std::vector<unsigned> parameter_sizes, parameter_offsets;
  std::vector<std::string_view> parameter_names;
  unsigned parameter_bytes = 0;

  uint64_t launches = 0, executed = 0;
  std::vector<uint8_t> reached;  // by instruction, of either form
  std::vector<Place> places;

  const Code& code(bool contract);

 private:
  std::unique_ptr<Code> decode(bool contract);
  std::unique_ptr<Code> plain_, contracted_;
};

// Turns add and sub of a product into fma where neither has a rounding mode: contraction.cpp.
void contract(Code& code, const std::vector<FloatForm>& forms, const std::vector<uint32_t>& labels);

}  // namespace ard::emulator
