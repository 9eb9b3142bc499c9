#include "emulator/kernel.h"

#include <algorithm>
#include <utility>

#include "emulator/machine.h"

namespace ard::emulator {
namespace {

bool in_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$'; }

bool names(std::string_view text, std::string_view name) {
  const size_t at = text.find(name), end = at + name.size();
  if (at == std::string_view::npos) return false;
  return (at == 0 || !in_name(text[at - 1])) && (end == text.size() || !in_name(text[end]));
}

// Decodes a body: declarations, labels, instructions.
class Body {
 public:
  Body(const KernelData& kernel, Code& code, std::vector<Place>& places)
      : kernel_(kernel), code_(code), places_(places), decoder_(code) {
    decoder_.symbols = kernel.module->symbols;
    for (const Parameter& each : kernel.parameters)
      decoder_.symbols[each.name] = {Space::param, each.offset};
  }

  void read();
  void contract() {
    std::vector<u32> starts;
    for (const auto& [name, at] : labels_) starts.push_back(at);
    emulator::contract(code_, forms_, starts);
  }

 private:
  void statement();
  bool label();
  void declaration(std::string_view text);
  void instruction(std::string_view text, unsigned line);
  void place_shared(const Variable& variable);
  void use_module_shared(std::string_view text);
  u32 label_at(std::string_view name) const;

  const KernelData& kernel_;
  Code& code_;
  std::vector<Place>& places_;
  Decoder decoder_;
  Reader reader_{};
  std::unordered_map<std::string_view, u32> labels_;
  std::unordered_map<std::string_view, std::vector<std::string_view>> lists_;  // .branchtargets
  std::vector<std::string_view> wanted_;  // by instruction: label or list that it goes to
  std::vector<FloatForm> forms_;
};

void Body::read() {
  reader_ = {kernel_.body, 0, kernel_.line};
  while (!reader_.done()) statement();
  code_.instructions.emplace_back().control = Control::exit;
  for (size_t at = 0; at < wanted_.size(); ++at) {
    Instruction& i = code_.instructions[at];
    if (i.control == Control::branch) i.target = label_at(wanted_[at]);
    if (i.control != Control::table) continue;
    i.target = u32(code_.tables.size());
    code_.tables.emplace_back();
    for (const std::string_view name : lists_[wanted_[at]])
      code_.tables.back().push_back(label_at(name));
  }
  decoder_.finish();
}

void Body::statement() {
  if (reader_.accept('{')) return decoder_.open_scope();
  if (reader_.accept('}')) return decoder_.close_scope();
  if (reader_.accept(';') || label()) return;
  const size_t begin = reader_.at;
  const unsigned line = reader_.line;
  const std::string_view word = reader_.word();
  if (word == ".loc" || word == ".file") {
    reader_.until('\n');
    return;
  }
  reader_.at = begin;
  const std::string_view text = trimmed(reader_.until(';'));
  if (word[0] == '.')
    declaration(text);
  else
    instruction(text, line);
}

bool Body::label() {
  const std::string_view rest = reader_.text.substr(reader_.at);
  const size_t end = size_t(std::find_if_not(rest.begin(), rest.end(), in_name) - rest.begin());
  if (end == 0 || end == rest.size() || rest[end] != ':') return false;
  const std::string_view name = trimmed(reader_.until(':'));
  constexpr std::string_view kList = ".branchtargets";
  if (!reader_.done() && reader_.text.substr(reader_.at, kList.size()) == kList) {
    lists_[name] = split(trimmed(reader_.until(';')).substr(kList.size()));
  } else if (!labels_.emplace(name, u32(code_.instructions.size())).second) {
    throw Fault(kernel_.name + ": the label " + std::string(name) + " stands twice");
  }
  return true;
}

u32 Body::label_at(std::string_view name) const {
  const auto found = labels_.find(name);
  if (found == labels_.end()) throw Fault(kernel_.name + ": no label " + std::string(name));
  return found->second;
}

void Body::declaration(std::string_view text) {
  Reader words{text};
  const std::string_view directive = words.word();
  if (directive == ".reg") {
    words.word();  // the type
    decoder_.declare_registers(text.substr(words.at));
  } else if (directive == ".shared") {
    place_shared(parse_variable(text));
  } else if (directive == ".local") {
    const Variable variable = parse_variable(text);
    const unsigned at = rounded_up(code_.local_bytes, variable.alignment);
    decoder_.symbols[variable.name] = {Space::local, at};
    code_.local_bytes = rounded_up(at + variable.bytes, 16);
  } else if (directive != ".pragma") {
    throw Fault(kernel_.name + ": unknown declaration " + std::string(text));
  }
}

void Body::place_shared(const Variable& variable) {
  const unsigned at = rounded_up(code_.static_shared, variable.alignment);
  decoder_.symbols[variable.name] = {Space::shared, kSharedStart + at};
  code_.static_shared = at + variable.bytes;
}

// A module's shared variables take room in the kernels that name them.
void Body::use_module_shared(std::string_view text) {
  for (const auto& [name, variable] : kernel_.module->shared) {
    if (decoder_.symbols.count(name) || !names(text, name)) continue;
    if (variable.bytes) {
      place_shared(variable);
    } else {
      decoder_.symbols[name] = {Space::shared, 0, true};
      code_.dynamic_alignment = std::max(code_.dynamic_alignment, variable.alignment);
    }
  }
}

void Body::instruction(std::string_view text, unsigned line) {
  places_.push_back({line, text, ""});
  try {
    use_module_shared(text);
    decoder_.decode(text);
  } catch (const Fault& problem) {
    places_.back().problem = problem.what();
    decoder_.out = Instruction();
    decoder_.out.control = Control::unsupported;
  }
  code_.instructions.push_back(decoder_.out);
  forms_.push_back(decoder_.form);
  wanted_.push_back(decoder_.label);
}

}  // namespace

void contract(Code& code, const std::vector<FloatForm>& forms, const std::vector<u32>& labels) {
  struct Register {
    unsigned writes = 0;   // in the whole kernel
    u32 latest = 0;        // of them, so far
    bool product = false;  // a multiplication was the latest
  };
  std::vector<Register> registers(code.registers);
  u32 block = 0;  // where the basic block begins
  const auto each_destination = [](const Instruction& i, auto f) {
    std::for_each_n(i.operands, i.destinations, [&](Operand slot) { f(slot); });
  };
  for (const Instruction& i : code.instructions)
    each_destination(i, [&](Operand slot) { ++registers[slot].writes; });
  // What is written at one place only keeps its value as long as what is computed from it.
  const auto unchanged = [&](Operand slot, u32 since) {
    return slot < 0 || registers[slot].writes <= 1 ||
           (since >= block && registers[slot].latest < since);
  };
  for (u32 at = 0; at < forms.size(); ++at) {
    if (std::find(labels.begin(), labels.end(), at) != labels.end()) block = at;
    Instruction& i = code.instructions[at];
    const FloatForm& form = forms[at];
    const bool sums = form.kind == FloatForm::add || form.kind == FloatForm::subtract;
    for (unsigned side = 1; sums && i.guard == kNoOperand && side <= 2; ++side) {
      const Operand slot = i.operands[side];
      if (slot < 0 || !registers[slot].product) continue;
      const u32 from = registers[slot].latest;
      const Operand* factors = code.instructions[from].operands;
      const bool current = registers[slot].writes == 1 || from >= block;
      if (!current || forms[from].type != form.type || forms[from].ftz != form.ftz) continue;
      if (!unchanged(factors[1], from) || !unchanged(factors[2], from)) continue;
      i.operands[3] = i.operands[3 - side];
      i.operands[1] = factors[1];
      i.operands[2] = factors[2];
      i.mode = form.kind == FloatForm::add ? 0 : side == 1 ? 2 : 1;  // a * b - c, c - a * b
      i.run = fused(form.type, form.ftz);
      break;
    }
    each_destination(i, [&](Operand slot) {
      registers[slot].latest = at;
      registers[slot].product = form.kind == FloatForm::multiply && i.guard == kNoOperand;
    });
    if (i.control != Control::none) block = at + 1;
  }
}

const Code& KernelData::code(bool contracted) {
  if (!codes_[contracted]) {
    auto code = std::make_unique<Code>();
    places.clear();
    Body body(*this, *code, places);
    body.read();
    if (contracted) body.contract();
    executed.resize(code->instructions.size());
    codes_[contracted] = std::move(code);
  }
  return *codes_[contracted];
}

Kernel::Kernel(std::unique_ptr<KernelData> data) : data_(std::move(data)) {}
Kernel::~Kernel() = default;
const std::string& Kernel::name() const { return data_->name; }
unsigned Kernel::static_shared() const { return data_->code(false).static_shared; }
unsigned Kernel::max_threads() const { return data_->max_threads; }
const std::vector<unsigned>& Kernel::parameter_sizes() const { return data_->parameter_sizes; }
uint64_t Kernel::launches() const { return data_->launches; }
size_t Kernel::instructions() const { return data_->code(false).instructions.size() - 1; }

std::vector<std::pair<unsigned, uint64_t>> Kernel::take_executed() const {
  std::vector<std::pair<unsigned, uint64_t>> lines;
  for (size_t at = 0; at < instructions(); ++at) {
    if (const uint64_t times = std::exchange(data_->executed[at], 0))
      lines.emplace_back(data_->places[at].line, times);
  }
  return lines;
}

}  // namespace ard::emulator
