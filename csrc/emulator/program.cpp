// A PTX module: its variables, and where its kernels stand.
#include <algorithm>
#include <cstring>

#include "emulator/kernel.h"

namespace ard::emulator {
namespace {

unsigned rounded_up(unsigned value, unsigned alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

unsigned number_of(std::string_view text) {
  uint64_t value = 0;
  if (!parse_number(trimmed(text), Type::u32, &value))
    throw Fault("PTX: not a number: " + std::string(text));
  return static_cast<unsigned>(value);
}

class ModuleReader {
 public:
  explicit ModuleReader(const std::shared_ptr<ModuleData>& module)
      : module_(module), reader_{module->source} {}
  std::vector<std::unique_ptr<KernelData>> read();

 private:
  void directive(std::string_view word, size_t begin);
  void variable(std::string_view text);
  void kernel(bool entry);
  std::string_view braced();  // what stands between "{" and its "}"
  void parameters(KernelData& kernel, std::string_view list);

  std::shared_ptr<ModuleData> module_;
  Reader reader_;
  std::vector<std::unique_ptr<KernelData>> kernels_;
};

std::vector<std::unique_ptr<KernelData>> ModuleReader::read() {
  while (!reader_.done()) {
    const size_t begin = reader_.at;
    std::string_view word = reader_.word();
    while (word == ".visible" || word == ".extern" || word == ".weak") word = reader_.word();
    directive(word, begin);
  }
  if (!module_->target) throw Fault("PTX: no .target");
  return std::move(kernels_);
}

void ModuleReader::directive(std::string_view word, size_t begin) {
  if (word == ".version" || word == ".address_size") {
    reader_.word();
  } else if (word == ".target") {
    const std::string_view target = split(reader_.until('\n'))[0];
    if (target.substr(0, 3) != "sm_") throw Fault("PTX: unknown target " + std::string(target));
    module_->target = std::atoi(std::string(target.substr(3)).c_str());  // sm_90a is 90 too
  } else if (word == ".file" || word == ".loc" || word == ".pragma") {
    reader_.until('\n');
  } else if (word == ".section") {
    reader_.until('{');
    braced();
  } else if (word == ".entry" || word == ".func") {
    kernel(word == ".entry");
  } else if (!word.empty() && word[0] == '.') {
    reader_.at = begin;
    variable(trimmed(reader_.until(';')));
  } else {
    throw Fault("PTX line " + std::to_string(reader_.line) + ": expected a directive, found '" +
                std::string(reader_.text.substr(begin, 20)) + "'");
  }
}

void ModuleReader::variable(std::string_view text) {
  const Variable variable = parse_variable(text);
  if (text.find(".shared") != std::string_view::npos) {
    module_->shared[variable.name] = variable;
    return;
  }
  const bool constant = text.find(".const") != std::string_view::npos;
  if (!constant && text.find(".global") == std::string_view::npos) {
    throw Fault("PTX: unknown variable " + std::string(text));
  }
  // operator new aligns to 16 bytes; variables ask for no more than 256.
  constexpr unsigned kAlignment = 256;
  module_->storage.push_back(std::make_unique<uint64_t[]>((variable.bytes + kAlignment) / 8 + 1));
  const uint64_t raw = reinterpret_cast<uint64_t>(module_->storage.back().get());
  const uint64_t address = (raw + kAlignment - 1) / kAlignment * kAlignment;
  unsigned at = 0;
  for (const std::string_view value : variable.values) {
    uint64_t bits = 0;
    if (!parse_number(value, variable.element == 8 ? Type::b64 : Type::b32, &bits)) {
      throw Fault("PTX: unknown initial value " + std::string(value));
    }
    if (at + variable.element > variable.bytes)
      throw Fault("PTX: too many initial values: " + std::string(text));
    std::memcpy(reinterpret_cast<uint8_t*>(address) + at, &bits, variable.element);
    at += variable.element;
  }
  module_->symbols[variable.name] = {Space::global, address, false};
  module_->memory.add(reinterpret_cast<const void*>(address), variable.bytes, !constant);
}

std::string_view ModuleReader::braced() {
  const size_t begin = reader_.at;
  for (int depth = 1; depth > 0; ++reader_.at) {
    if (reader_.at >= reader_.text.size()) throw Fault("PTX: a '}' is missing");
    const char c = reader_.text[reader_.at];
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    reader_.line += c == '\n';
  }
  return reader_.text.substr(begin, reader_.at - 1 - begin);
}

void ModuleReader::parameters(KernelData& kernel, std::string_view list) {
  for (const std::string_view text : split(list)) {
    const Variable parameter = parse_variable(text);
    const unsigned offset = rounded_up(kernel.parameter_bytes, parameter.alignment);
    kernel.parameter_names.push_back(parameter.name);
    kernel.parameter_sizes.push_back(parameter.bytes);
    kernel.parameter_offsets.push_back(offset);
    kernel.parameter_bytes = offset + parameter.bytes;
  }
}

// Device functions are passed over: a call of one is not supported.
void ModuleReader::kernel(bool entry) {
  auto kernel = std::make_unique<KernelData>();
  if (!entry) {
    const size_t end = reader_.text.find_first_of("{;", reader_.at);
    if (end == std::string_view::npos) throw Fault("PTX: a function has no end");
    if (reader_.text[end] == ';') {
      reader_.until(';');
      return;
    }
  }
  kernel->module = module_;
  kernel->name = std::string(reader_.word());
  if (entry && reader_.accept('(')) parameters(*kernel, reader_.until(')'));
  const std::string_view directives = reader_.until('{');
  constexpr std::string_view kMaximum = ".maxntid";
  if (const size_t at = directives.find(kMaximum); at != std::string_view::npos) {
    const std::string_view counts = directives.substr(at + kMaximum.size());
    kernel->max_threads = 1;
    for (const std::string_view count : split(counts.substr(0, counts.find('.')))) {
      kernel->max_threads *= number_of(count);
    }
  }
  kernel->line = reader_.line;
  kernel->body = braced();
  if (entry) kernels_.push_back(std::move(kernel));
}

}  // namespace

struct Program::Data {
  std::shared_ptr<ModuleData> module = std::make_shared<ModuleData>();
  std::vector<std::unique_ptr<Kernel>> kernels;
};

Program::Program(const std::string& ptx) : data_(std::make_unique<Data>()) {
  data_->module->source = without_comments(ptx);
  for (auto& kernel : ModuleReader(data_->module).read()) {
    data_->kernels.push_back(std::make_unique<Kernel>(std::move(kernel)));
  }
}
Program::~Program() = default;
Program::Program(Program&&) noexcept = default;

int Program::target() const { return data_->module->target; }

std::vector<std::string> Program::kernels() const {
  std::vector<std::string> names;
  for (const auto& kernel : data_->kernels) names.push_back(kernel->name());
  return names;
}

const Kernel* Program::find(const std::string& name) const {
  for (const auto& kernel : data_->kernels) {
    if (kernel->name() == name) return kernel.get();
  }
  return nullptr;
}

}  // namespace ard::emulator
