#include "emulator/kernel.h"

#include <algorithm>

#include "emulator/warp.h"

namespace ard::emulator {
namespace {

// Decodes a body: declarations, labels, instructions.
class Body {
 public:
  Body(const KernelData& kernel, Code& code, std::vector<Place>& places)
      : kernel_(kernel),
        code_(code),
        places_(places),
        symbols_(kernel.module->symbols),
        decoder_(code, symbols_) {
    for (size_t n = 0; n < kernel.parameter_names.size(); ++n) {
      symbols_[kernel.parameter_names[n]] = {Space::param, kernel.parameter_offsets[n], false};
    }
  }

  void read();

  std::vector<FloatForm> forms;
  std::vector<uint32_t> starts;  // of basic blocks, where a label is

 private:
  void declaration(std::string_view text);
  void label(std::string_view name);
  void instruction(std::string_view text, unsigned line);
  void place_shared(const Variable& variable);
  void use_module_shared(std::string_view text);
  void resolve();

  const KernelData& kernel_;
  Code& code_;
  std::vector<Place>& places_;
  std::unordered_map<std::string_view, Symbol> symbols_;
  Decoder decoder_;
  Reader reader_{};
  std::unordered_map<std::string_view, uint32_t> labels_;
  std::unordered_map<std::string_view, std::vector<std::string_view>> lists_;  // .branchtargets
  std::vector<std::string_view> wanted_;  // by instruction: label or list that it goes to
};

bool names_label(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         c == '$';
}

bool names(std::string_view text, std::string_view name) {
  const size_t at = text.find(name);
  if (at == std::string_view::npos) return false;
  const size_t end = at + name.size();
  return (at == 0 || !names_label(text[at - 1])) && (end == text.size() || !names_label(text[end]));
}

void Body::read() {
  reader_ = {kernel_.body, 0, kernel_.line};
  while (!reader_.done()) {
    const char next = reader_.peek();
    if (next == '{') {
      reader_.accept('{');
      decoder_.open_scope();
    } else if (next == '}') {
      reader_.accept('}');
      decoder_.close_scope();
    } else if (next == ';') {
      reader_.accept(';');
    } else if (next == '.') {
      const size_t begin = reader_.at;
      const std::string_view directive = reader_.word();
      if (directive == ".loc" || directive == ".file") {
        reader_.until('\n');
      } else {
        reader_.at = begin;
        declaration(trimmed(reader_.until(';')));
      }
    } else {
      size_t end = reader_.at;
      while (end < kernel_.body.size() && names_label(kernel_.body[end])) ++end;
      if (end > reader_.at && end < kernel_.body.size() && kernel_.body[end] == ':') {
        label(trimmed(reader_.until(':')));
      } else {
        const unsigned line = reader_.line;
        instruction(trimmed(reader_.until(';')), line);
      }
    }
  }
  Instruction end;
  end.control = Control::exit;
  code_.instructions.push_back(end);
  resolve();
  decoder_.finish();
}

void Body::label(std::string_view name) {
  constexpr std::string_view kList = ".branchtargets";
  if (!reader_.done() && reader_.text.substr(reader_.at, kList.size()) == kList) {
    lists_[name] = split(trimmed(reader_.until(';')).substr(kList.size()));
    return;
  }
  const uint32_t at = static_cast<uint32_t>(code_.instructions.size());
  if (!labels_.emplace(name, at).second)
    throw Fault(kernel_.name + ": label " + std::string(name) + " stands twice");
  starts.push_back(at);
}

void Body::declaration(std::string_view text) {
  Reader words{text};
  const std::string_view directive = words.word();
  if (directive == ".reg") {
    std::string_view type = words.word();
    while (type == ".v2" || type == ".v4") type = words.word();
    decoder_.declare_registers(text.substr(words.at));
  } else if (directive == ".shared") {
    place_shared(parse_variable(text));
  } else if (directive == ".local") {
    const Variable variable = parse_variable(text);
    const unsigned at =
        (code_.local_bytes + variable.alignment - 1) / variable.alignment * variable.alignment;
    symbols_[variable.name] = {Space::local, at, false};
    code_.local_bytes = (at + variable.bytes + 15) / 16 * 16;
  } else if (directive != ".pragma") {
    throw Fault(kernel_.name + ": unknown declaration " + std::string(text));
  }
}

void Body::place_shared(const Variable& variable) {
  const unsigned at =
      (code_.static_shared + variable.alignment - 1) / variable.alignment * variable.alignment;
  symbols_[variable.name] = {Space::shared, kSharedStart + at, false};
  code_.static_shared = at + variable.bytes;
}

// A module's shared variables take room in the kernels that name them.
void Body::use_module_shared(std::string_view text) {
  for (const auto& [name, variable] : kernel_.module->shared) {
    if (symbols_.count(name) || !names(text, name)) continue;
    if (variable.bytes) {
      place_shared(variable);
    } else {
      symbols_[name] = {Space::shared, 0, true};
      code_.dynamic_alignment = std::max(code_.dynamic_alignment, variable.alignment);
    }
  }
}

void Body::instruction(std::string_view text, unsigned line) {
  Place place{line, text, ""};
  Decoder::Result result;
  try {
    use_module_shared(text);
    result = decoder_.decode(text);
  } catch (const Fault& problem) {
    result.instruction.control = Control::unsupported;
    place.problem = problem.what();
  }
  code_.instructions.push_back(result.instruction);
  forms.push_back(result.form);
  wanted_.push_back(result.label);
  places_.push_back(place);
}

void Body::resolve() {
  const auto find = [&](std::string_view name) {
    const auto found = labels_.find(name);
    if (found == labels_.end()) throw Fault(kernel_.name + ": no label " + std::string(name));
    return found->second;
  };
  for (size_t at = 0; at < wanted_.size(); ++at) {
    Instruction& i = code_.instructions[at];
    if (i.control == Control::branch) i.target = find(wanted_[at]);
    if (i.control != Control::table) continue;
    const auto list = lists_.find(wanted_[at]);
    if (list == lists_.end())
      throw Fault(kernel_.name + ": no .branchtargets " + std::string(wanted_[at]));
    i.target = static_cast<uint32_t>(code_.tables.size());
    code_.tables.emplace_back();
    for (const std::string_view name : list->second) code_.tables.back().push_back(find(name));
  }
}

}  // namespace

const Code& KernelData::code(bool contract) {
  std::unique_ptr<Code>& wanted = contract ? contracted_ : plain_;
  if (!wanted) wanted = decode(contract);
  return *wanted;
}

std::unique_ptr<Code> KernelData::decode(bool contracted) {
  auto code = std::make_unique<Code>();
  std::vector<Place> found;
  Body body(*this, *code, found);
  body.read();
  if (contracted) contract(*code, body.forms, body.starts);
  places = std::move(found);
  reached.resize(code->instructions.size());
  return code;
}

Kernel::Kernel(std::unique_ptr<KernelData> data) : data_(std::move(data)) {}
Kernel::~Kernel() = default;
const std::string& Kernel::name() const { return data_->name; }
unsigned Kernel::static_shared() const { return data_->code(false).static_shared; }
unsigned Kernel::max_threads() const { return data_->max_threads; }
const std::vector<unsigned>& Kernel::parameter_sizes() const { return data_->parameter_sizes; }
uint64_t Kernel::launches() const { return data_->launches; }
uint64_t Kernel::executed() const { return data_->executed; }

size_t Kernel::instructions() const {
  data_->code(false);
  return data_->places.size();
}

std::vector<std::string> Kernel::never_executed() const {
  std::vector<std::string> lines;
  for (size_t at = 0; at < instructions(); ++at) {
    const Place& place = data_->places[at];
    if (!data_->reached[at])
      lines.push_back(std::to_string(place.line) + ": " + std::string(place.text));
  }
  return lines;
}

}  // namespace ard::emulator
