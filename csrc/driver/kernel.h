// A kernel that is known by its name and started through the driver.
#pragma once

#include <atomic>
#include <string>
#include <typeinfo>

#include "cuda/geometry.h"
#include "driver/api.h"

namespace ard::driver {

// Its type's name holds the kernel's.
template <auto kKernel>
struct Named {};

// "ard::cuda::pgd_linf_step_kernel<float, 4>" from the type info of Named of it: what NVRTC takes
// for a name expression. By the rules of the Itanium C++ ABI, so from every compiler that follows
// it.
std::string name_of(const std::type_info& named);

// Gives the function on a device, compiling it if it must; throws if it cannot. It may be called by
// several threads at once for the same kernel, and gives all of them the same function.
using Resolver = Function (*)(Device, const std::string& source, const std::string& name);

void set_resolver(Resolver resolver);

// Constructed when the library is loaded, one for each kernel that a launcher mentions, so that the
// list of all is known without anybody writing it down.
class Kernel {
 public:
  Kernel(const char* source, const std::type_info& named);

  const std::string& source() const { return source_; }
  const std::string& name() const { return name_; }
  const Kernel* next() const { return next_; }
  Kernel* next() { return next_; }

  // Of the current device. arguments: the address of each.
  void start(const cuda::Geometry& geometry, cuda::Stream stream, void** arguments);

  // Of its code on the current device, 10 * major + minor; compiled for the stream if need be.
  int code_arch(cuda::Stream stream);

  // Null: not known any more.
  void store(Device device, Function function);

 private:
  static constexpr int kMaxDevices = 64;

  Function function(Device device, cuda::Stream stream);
  void allow_dynamic_shared(Device device, Function function);
  static int slot(Device device);

  std::string source_, name_;
  Kernel* next_;
  std::atomic<Function> functions_[kMaxDevices] = {};
  std::atomic<uint64_t> shared_allowed_{0};  // bits of devices
};

// The list of all kernels.
Kernel* first_kernel();

}  // namespace ard::driver
