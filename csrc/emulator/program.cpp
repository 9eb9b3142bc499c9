// A PTX module: its variables, and where its kernels stand.
#include <cstring>

#include "emulator/kernel.h"

namespace ard::emulator {
namespace {

class ModuleReader {
 public:
  explicit ModuleReader(const std::shared_ptr<ModuleData>& module)
      : module_(module), reader_{module->source} {}
  std::vector<std::unique_ptr<KernelData>> read();

 private:
  void directive();
  void variable(std::string_view text);
  void function();
  void kernel();

  std::shared_ptr<ModuleData> module_;
  Reader reader_;
  std::vector<std::unique_ptr<KernelData>> kernels_;
};

std::vector<std::unique_ptr<KernelData>> ModuleReader::read() {
  while (!reader_.done()) directive();
  if (!module_->target) throw Fault("PTX: no .target");
  return std::move(kernels_);
}

void ModuleReader::directive() {
  const size_t begin = reader_.at;
  std::string_view word = reader_.word();
  while (word == ".visible" || word == ".extern" || word == ".weak") word = reader_.word();
  if (word == ".version" || word == ".address_size") {
    reader_.word();
  } else if (word == ".target") {
    const std::string_view target = split(reader_.until('\n')).at(0);
    if (target.substr(0, 3) != "sm_") throw Fault("PTX: unknown target " + std::string(target));
    module_->target = std::atoi(std::string(target.substr(3)).c_str());  // sm_90a is 90 too
  } else if (word == ".file" || word == ".loc") {
    reader_.until('\n');
  } else if (word == ".section") {
    reader_.until('{');
    reader_.braced();
  } else if (word == ".entry") {
    kernel();
  } else if (word == ".func") {
    function();
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
  const bool constant = text.find(".const") != std::string_view::npos;
  if (text.find(".shared") != std::string_view::npos) {
    module_->shared[variable.name] = variable;
    return;
  }
  if (!constant && text.find(".global") == std::string_view::npos) {
    throw Fault("PTX: unknown variable " + std::string(text));
  }
  constexpr unsigned kAlignment = 256;
  module_->storage.push_back(std::make_unique<u64[]>((variable.bytes + kAlignment) / 8 + 1));
  const u64 raw = reinterpret_cast<u64>(module_->storage.back().get());
  const u64 address = (raw + kAlignment - 1) / kAlignment * kAlignment;
  const Type type = variable.element == 8 ? Type::f64 : Type::f32;
  unsigned at = 0;
  for (const std::string_view value : variable.values) {
    u64 bits = 0;
    if (at >= variable.bytes || !parse_number(value, type, &bits)) {
      throw Fault("PTX: unknown initial value " + std::string(value));
    }
    std::memcpy(reinterpret_cast<u8*>(address) + at, &bits, variable.element);
    at += variable.element;
  }
  module_->symbols[variable.name] = {Space::global, address};
  module_->memory.add(reinterpret_cast<const void*>(address), variable.bytes, !constant);
}

// Device functions are passed over: a call of one is not supported.
void ModuleReader::function() {
  const size_t end = reader_.text.find_first_of("{;", reader_.at);
  if (end == std::string_view::npos) throw Fault("PTX: a function has no end");
  reader_.until(reader_.text[end]);
  if (reader_.text[end] == '{') reader_.braced();
}

void ModuleReader::kernel() {
  auto kernel = std::make_unique<KernelData>();
  kernel->module = module_;
  kernel->name = std::string(reader_.word());
  const std::string_view list = reader_.accept('(') ? reader_.until(')') : "";
  for (const std::string_view text : split(list)) {
    const Variable parameter = parse_variable(text);
    const unsigned offset = rounded_up(kernel->parameter_bytes, parameter.alignment);
    kernel->parameters.push_back({parameter.name, offset, parameter.bytes});
    kernel->parameter_sizes.push_back(parameter.bytes);
    kernel->parameter_bytes = offset + parameter.bytes;
  }
  const std::string_view directives = reader_.until('{');
  constexpr std::string_view kMaximum = ".maxntid";
  if (const size_t at = directives.find(kMaximum); at != std::string_view::npos) {
    const std::string_view counts = directives.substr(at + kMaximum.size());
    kernel->max_threads = 1;
    for (const std::string_view count : split(counts.substr(0, counts.find('.')))) {
      kernel->max_threads *= unsigned(parse_count(count));
    }
  }
  kernel->line = reader_.line;
  kernel->body = reader_.braced();
  kernels_.push_back(std::move(kernel));
}

}  // namespace

struct Program::Data {
  std::vector<std::unique_ptr<Kernel>> kernels;
  int target = 0;
};

Program::Program(const std::string& ptx) : data_(std::make_unique<Data>()) {
  const auto module = std::make_shared<ModuleData>();
  module->source = without_comments(ptx);
  for (auto& kernel : ModuleReader(module).read()) {
    data_->kernels.push_back(std::make_unique<Kernel>(std::move(kernel)));
  }
  data_->target = module->target;
}
Program::~Program() = default;
Program::Program(Program&&) noexcept = default;

int Program::target() const { return data_->target; }

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
