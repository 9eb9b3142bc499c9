// A kernel's PTX, and its instructions once a launch or a question has had it decoded.
#pragma once

#include <memory>

#include "emulator/decoder.h"
#include "emulator/interpreter.h"

namespace ard::emulator {

// What the kernels of a module share. All string_views point into the source.
struct ModuleData {
  std::string source;
  int target = 0;
  std::unordered_map<std::string_view, Symbol> symbols;  // .global, .const
  std::unordered_map<std::string_view, Variable> shared;
  std::vector<std::unique_ptr<u64[]>> storage;
  GlobalMemory memory;
};

struct Parameter {
  std::string_view name;
  unsigned offset, bytes;
};

struct KernelData {
  std::shared_ptr<const ModuleData> module;
  std::string name;
  std::string_view body;  // between the braces
  unsigned line = 0;      // where it begins
  unsigned max_threads = 0, parameter_bytes = 0;
  std::vector<Parameter> parameters;
  std::vector<unsigned> parameter_sizes;

  u64 launches = 0;
  std::vector<u64> executed;  // by instruction: how often a warp did, with any of its lanes
  std::vector<Place> places;

  const Code& code(bool contracted);

 private:
  std::unique_ptr<Code> codes_[2];  // as written, contracted
};

// Fuses add and sub with the product that they take where neither has a rounding mode; `labels`:
// instructions that branches lead to.
void contract(Code& code, const std::vector<FloatForm>& forms, const std::vector<u32>& labels);

}  // namespace ard::emulator
