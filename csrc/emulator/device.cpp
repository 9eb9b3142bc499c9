#include "emulator/device.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace ard::emulator {
namespace {

// NVIDIA's figures: A100, H100 and RTX PRO 6000.
constexpr Generation kGenerations[] = {
    {80, 108, 163 * 1024, false}, {90, 132, 227 * 1024, true}, {120, 188, 99 * 1024, true}};
constexpr int kMaxThreads = 1024, kSharedWithoutAsking = 48 * 1024, kMaxClusterBlocks = 8;

// [begin, end) of a kernel in the text of its module.
std::pair<size_t, size_t> body_of(const std::string& text, const std::string& name) {
  const size_t begin = text.find(".entry " + name + "(");
  if (begin == std::string::npos) throw std::out_of_range("emulator: no kernel " + name);
  return {begin, text.find("\n}\n", begin)};
}

}  // namespace

Device& Device::get() {
  static Device* const device = [] {
    auto* made = new Device;  // never destroyed: code unregisters itself at exit
    made->choose(90, 1000, 0);
    return made;
  }();
  return *device;
}

void Device::choose(int arch, int code, int max_shared) {
  for (const Generation& generation : kGenerations) {
    if (generation.arch != arch) continue;
    const std::lock_guard lock(mutex_);
    generation_ = generation;
    newest_code_ = std::min(arch, code);
    if (max_shared) generation_.max_shared = max_shared;
    const std::array<int, 3> gpu{arch, newest_code_, generation_.max_shared};
    const auto found = std::find(chosen_.begin(), chosen_.end(), gpu);
    ordinal_ = int(found - chosen_.begin());
    if (found == chosen_.end()) chosen_.push_back(gpu);
    return;
  }
  throw std::invalid_argument("emulator: arch must be 80, 90 or 120, got " + std::to_string(arch));
}

void Device::add_code(const void* fat_binary) {
  Code& code = code_[fat_binary];
  for (Ptx& ptx : ptx_in_fat_binary(fat_binary)) code.ptx[ptx.arch] = std::move(ptx.text);
}

void Device::add_function(const void* fat_binary, const void* host, const char* name) {
  functions_[host] = {fat_binary, name};
}

int Device::newest(const Code& code) const {
  const auto above = code.ptx.upper_bound(newest_code_);
  if (above == code.ptx.begin()) {
    throw std::out_of_range("emulator: no PTX for compute capability " +
                            std::to_string(newest_code_) + " or less");
  }
  return std::prev(above)->first;
}

Program& Device::program(const void* fat_binary) {
  Code& code = code_.at(fat_binary);
  const int arch = newest(code);
  std::unique_ptr<Program>& program = code.programs[arch];
  if (!program) {
    std::string text = code.ptx.at(arch);
    for (const auto& [name, ptx] : replaced_) {
      if (text.find(".entry " + name + "(") == std::string::npos) continue;
      const auto [begin, end] = body_of(text, name);
      text.replace(begin, end - begin, ptx);
    }
    program = std::make_unique<Program>(text);
  }
  return *program;
}

const Kernel& Device::kernel(const void* host) {
  const std::lock_guard lock(mutex_);
  const Function& function = functions_.at(host);
  const Kernel* found = program(function.fat_binary).find(function.name);
  if (!found) throw std::out_of_range("emulator: no PTX of " + function.name);
  return *found;
}

int Device::code_arch(const void* host) {
  const std::lock_guard lock(mutex_);
  return newest(code_.at(functions_.at(host).fat_binary));
}

void Device::allow_shared(const void* host, int bytes) {
  const std::lock_guard lock(mutex_);
  if (int(kernel(host).static_shared()) + bytes > generation_.max_shared) {
    fail("more dynamic shared memory asked for than a block can have: " + std::to_string(bytes));
  } else if (grants_shared) {
    allowed_[{ordinal_, host}] = bytes;
  }
}

std::string Device::refusal(const void* host, const Kernel& kernel,
                            const LaunchShape& shape) const {
  const auto asked = allowed_.find({ordinal_, host});
  const int granted = kSharedWithoutAsking - int(kernel.static_shared());
  const int most = asked == allowed_.end() ? granted : std::max(asked->second, granted);
  if (shape.grid < 1 || shape.block < 1 || shape.block > kMaxThreads) {
    return "a grid of " + std::to_string(shape.grid) + " blocks of " + std::to_string(shape.block) +
           " threads";
  }
  if (int64_t(shape.dynamic_shared) > most) {
    return std::to_string(shape.dynamic_shared) + " bytes of dynamic shared memory, " +
           std::to_string(most) + " are allowed";
  }
  if (shape.cluster > 1 &&
      (!generation_.clusters || shape.cluster > kMaxClusterBlocks || shape.grid % shape.cluster)) {
    return "clusters of " + std::to_string(shape.cluster) + " blocks";
  }
  return "";
}

void Device::launch(const void* host, const LaunchShape& shape, void* const* parameters) {
  const std::lock_guard lock(mutex_);
  if (!error_.empty()) return;
  try {
    const Kernel& code = kernel(host);
    launched.push_back({code.name(), shape});
    const std::string refused = refusal(host, code, shape);
    if (!refused.empty()) {
      fail("launch of " + code.name() + " refused: " + refused);
    } else {
      run(code, shape, parameters, memory, options);
    }
  } catch (const std::exception& fault) {
    fail(fault.what());
  }
}

void Device::fail(std::string what) {
  if (error_.empty()) error_ = std::move(what);
}

std::string Device::take_error() { return std::exchange(error_, ""); }

void Device::replace_ptx(const std::string& name, const std::string& ptx) {
  const std::lock_guard lock(mutex_);
  replaced_[name] = ptx;
  for (auto& [key, code] : code_) code.programs.clear();
}

void Device::restore_ptx() {
  const std::lock_guard lock(mutex_);
  replaced_.clear();
  for (auto& [key, code] : code_) code.programs.clear();
}

std::map<std::string, std::vector<std::pair<unsigned, uint64_t>>> Device::take_executed() {
  const std::lock_guard lock(mutex_);
  std::map<std::string, std::vector<std::pair<unsigned, uint64_t>>> all;
  for (const auto& [host, function] : functions_) {
    const Code& code = code_.at(function.fat_binary);
    const auto program = code.programs.find(newest(code));
    if (program == code.programs.end()) continue;
    const Kernel* const kernel = program->second->find(function.name);
    if (kernel && kernel->launches()) all[function.name] = kernel->take_executed();
  }
  return all;
}

std::vector<std::string> Device::kernel_names() {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [host, function] : functions_) names.push_back(function.name);
  std::sort(names.begin(), names.end());
  return names;
}

std::string Device::module_of(const std::string& name) {
  const std::lock_guard lock(mutex_);
  for (const auto& [host, function] : functions_) {
    if (function.name != name) continue;
    const Code& code = code_.at(function.fat_binary);
    return code.ptx.at(newest(code));
  }
  throw std::out_of_range("emulator: no kernel " + name);
}

std::string Device::ptx_of(const std::string& name) {
  const std::string text = module_of(name);
  const auto [begin, end] = body_of(text, name);
  return text.substr(begin, end - begin);
}

}  // namespace ard::emulator
