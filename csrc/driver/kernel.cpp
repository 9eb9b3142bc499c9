#include "driver/kernel.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <stdexcept>

namespace ard::driver {
namespace {

// Both are set before any constructor runs.
Kernel* first = nullptr;
std::atomic<Resolver> resolve{nullptr};

}  // namespace

std::string name_of(const std::type_info& named) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> demangled(
      abi::__cxa_demangle(named.name(), nullptr, nullptr, &status), std::free);
  // ard::driver::Named<&(void ard::cuda::NAME<ARGUMENTS>(PARAMETERS))>, or Named<&ard::cuda::NAME>
  // for a kernel that is no template.
  const std::string text = status == 0 ? demangled.get() : "";
  const size_t begin = text.find("ard::cuda::");
  int depth = 0;
  for (size_t end = begin; end < text.size(); ++end) {
    const bool over = depth == 0 && (text[end] == '(' || text[end] == '>');
    if (over) return text.substr(begin, end - begin);
    depth += text[end] == '<' ? 1 : text[end] == '>' ? -1 : 0;
  }
  throw std::logic_error(std::string("ard_fast: no kernel's name: ") + named.name());
}

void set_resolver(Resolver resolver) { resolve.store(resolver, std::memory_order_release); }

Kernel* first_kernel() { return first; }

Kernel::Kernel(const char* source, const std::type_info& named)
    : source_(source), name_(name_of(named)), next_(first) {
  first = this;
}

int Kernel::slot(Device device) {
  if (device < 0 || device >= kMaxDevices) {
    throw std::runtime_error("ard_fast: device must be 0 to " + std::to_string(kMaxDevices - 1) +
                             ", got " + std::to_string(device));
  }
  return device;
}

void Kernel::store(Device device, Function function) {
  functions_[slot(device)].store(function, std::memory_order_release);
  if (!function) shared_allowed_.fetch_and(~(uint64_t(1) << device), std::memory_order_relaxed);
}

Function Kernel::function(Device device, cuda::Stream stream) {
  if (Function known = functions_[slot(device)].load(std::memory_order_acquire)) return known;
  int status = kNotCapturing;
  check(api().cuStreamIsCapturing(stream, &status), "the state of the stream");
  const std::string what = name_ + " for cuda:" + std::to_string(device);
  if (status != kNotCapturing) {
    throw std::runtime_error("ard_fast: " + what +
                             " is not compiled yet, and a CUDA graph is being captured: call "
                             "ard_fast.compile_kernels() before the capture, or the operator once");
  }
  const Resolver resolver = resolve.load(std::memory_order_acquire);
  if (!resolver) throw std::runtime_error("ard_fast: nothing is there to compile " + what);
  const Function made = resolver(device, source_, name_);
  store(device, made);
  return made;
}

void Kernel::allow_dynamic_shared(Device device, Function function) {
  const uint64_t bit = uint64_t(1) << device;
  if (shared_allowed_.load(std::memory_order_relaxed) & bit) return;
  int most = 0, taken = 0;
  check(api().cuDeviceGetAttribute(&most, kMaxSharedPerBlock, device), name_.c_str());
  check(api().cuFuncGetAttribute(&taken, kStaticShared, function), name_.c_str());
  check(api().cuFuncSetAttribute(function, kMaxDynamicShared, most - taken), name_.c_str());
  shared_allowed_.fetch_or(bit, std::memory_order_relaxed);
}

int Kernel::code_arch(cuda::Stream stream) {
  int arch = 0;
  check(api().cuFuncGetAttribute(&arch, kPtxVersion, function(current_device(), stream)),
        name_.c_str());
  return arch;
}

void Kernel::start(const cuda::Geometry& geometry, cuda::Stream stream, void** arguments) {
  const unsigned grid = cuda::grid_size(geometry.blocks);
  const Device device = current_device();
  const Function compiled = function(device, stream);
  // To the most that the kernel can have, and once: threads whose launches differ in size then
  // never take from one another what they have asked for.
  if (geometry.shared_bytes > cuda::kSharedWithoutAsking) allow_dynamic_shared(device, compiled);
  LaunchAttribute cluster{};
  cluster.id = kClusterDimension;
  cluster.value.cluster = {unsigned(geometry.cluster), 1, 1};
  const LaunchConfig config{grid,
                            1,
                            1,
                            unsigned(geometry.threads),
                            1,
                            1,
                            unsigned(geometry.shared_bytes),
                            stream,
                            geometry.cluster > 1 ? &cluster : nullptr,
                            geometry.cluster > 1 ? 1u : 0u};
  check(api().cuLaunchKernelEx(&config, compiled, arguments, nullptr), name_.c_str());
}

}  // namespace ard::driver
