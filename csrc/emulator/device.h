// The emulated GPU of this process: which generation it is, what code it has, what it was asked to
// run. The CUDA runtime's functions (cuda_runtime.cpp) and the tests' bindings share it.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "emulator/fat_binary.h"
#include "emulator/interpreter.h"

namespace ard::emulator {

// What a launcher can ask of a GPU.
struct Generation {
  int arch;  // 90 for compute capability 9.0
  int multiprocessors;
  int max_shared;  // bytes that one block may have when its kernel asks for them
  bool clusters;
};

// What a kernel was started with.
struct Launched {
  std::string kernel;  // mangled
  LaunchShape shape;
};

class Device {
 public:
  // The one of this process.
  static Device& get();

  // Becomes a GPU of a generation: 80, 90 or 120. code: the newest architecture whose PTX is there,
  // as in a module that was built for older GPUs. max_shared: of a block, 0 for the generation's.
  void choose(int arch, int code, int max_shared);
  const Generation& generation() const { return generation_; }
  // A number for each GPU that was chosen so far: what launchers remember of one is not of another.
  int ordinal() const { return ordinal_; }

  // Called by what nvcc generates, before main.
  void add_code(const void* fat_binary);
  void add_function(const void* fat_binary, const void* host, const char* name);

  // The code that this device runs for a kernel, as the driver would choose it: the newest PTX that
  // is not too new. Throws std::out_of_range for a function that was not registered.
  const Kernel& kernel(const void* host);
  int code_arch(const void* host);

  // Dynamic shared memory that a kernel has been allowed on this device.
  void allow_shared(const void* host, int bytes);

  // What the hardware would refuse, a fault of the kernel and a kernel without code are kept for
  // take_error; nothing runs after an error that nobody has taken.
  void launch(const void* host, const LaunchShape& shape, void* const* parameters);
  std::string take_error();
  void fail(std::string what);

  // Whether kernels get the dynamic shared memory that they ask for; as if nobody had asked, if
  // not.
  bool grants_shared = true;

  // What the current device executed of each kernel since the last call: Kernel::take_executed.
  std::map<std::string, std::vector<std::pair<unsigned, uint64_t>>> take_executed();
  // All PTX of the module that a kernel is in.
  std::string module_of(const std::string& name);

  // A kernel's PTX from its .entry to its closing brace, and another one to run instead, to see
  // that the tests notice.
  std::vector<std::string> kernel_names();
  std::string ptx_of(const std::string& name);
  void replace_ptx(const std::string& name, const std::string& ptx);
  void restore_ptx();

  GlobalMemory memory;
  Options options{};
  std::vector<Launched> launched;

 private:
  struct Code {
    std::map<int, std::string> ptx;  // by architecture
    std::map<int, std::unique_ptr<Program>> programs;
  };
  struct Function {
    const void* fat_binary;
    std::string name;
  };
  int newest(const Code& code) const;
  Program& program(const void* fat_binary);
  std::string refusal(const void* host, const Kernel& kernel, const LaunchShape& shape) const;

  std::recursive_mutex mutex_;
  Generation generation_{};
  int newest_code_ = 0, ordinal_ = 0;
  std::map<const void*, Code> code_;
  std::map<const void*, Function> functions_;
  std::map<std::pair<int, const void*>, int> allowed_;  // of a device's kernel
  std::vector<std::array<int, 3>> chosen_;              // arguments of choose() by ordinal
  std::map<std::string, std::string> replaced_;         // bodies of kernels
  std::string error_;
};

}  // namespace ard::emulator
