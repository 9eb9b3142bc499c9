// Runs the PTX that nvcc writes on a CPU, and faults where a GPU would be silent.
//
// The 32 threads of a warp execute an instruction together while they are at the same place.
// Arithmetic follows the PTX ISA: canonical NaN, min and max with NaN and -0, .ftz, .sat, all
// rounding modes, clamped shifts, saturating conversions. One run at a time: kernels count what
// they execute.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ard::emulator {

// What a kernel, a launch or a PTX text did wrong. Names kernel, block, thread, line of the PTX and
// instruction.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Results of ex2, lg2, rcp, rsqrt, sqrt, sin, cos and tanh.approx, div.approx and div.full:
// correctly rounded, at plus or minus the documented maximum error, or anywhere between. The same
// operands always give the same result.
enum class Approximation { exact, extreme, random };

// forward: whole warps, first to last. reverse: one thread after the other, last to first.
// shuffled: warps at random, and of a warp's threads a random part that need not stay together.
enum class ThreadOrder { forward, reverse, shuffled };

struct Options {
  Approximation approximation = Approximation::exact;
  ThreadOrder order = ThreadOrder::forward;
  bool contract =
      false;  // fuse mul with add or sub where neither carries a rounding mode, as ptxas may
  uint64_t seed = 0;
};

// The memory that kernels may touch. An access must lie within one range; ranges that overlap count
// as one, ranges that only touch do not.
class GlobalMemory {
 public:
  struct Range {
    uint64_t begin = 0, end = 0;
    bool contains(uint64_t first, uint64_t last) const { return first >= begin && last <= end; }
  };

  void add(const void* begin, size_t bytes, bool writable);
  void clear();
  // The range that holds the bytes [first, last), or null.
  const Range* find(uint64_t first, uint64_t last, bool write) const;

 private:
  std::vector<Range> readable_, writable_;  // sorted, disjoint
};

// All in x. A cluster of 1 block is no cluster.
struct LaunchShape {
  unsigned grid = 1, block = 1, cluster = 1, dynamic_shared = 0;
};

struct KernelData;

class Kernel {
 public:
  explicit Kernel(std::unique_ptr<KernelData> data);
  ~Kernel();

  const std::string& name() const;                       // mangled
  unsigned static_shared() const;                        // bytes
  unsigned max_threads() const;                          // a block, by .maxntid; 0: not bounded
  const std::vector<unsigned>& parameter_sizes() const;  // bytes
  uint64_t launches() const;
  size_t instructions() const;  // of the kernel's text
  // Of each instruction that has run since the last call: its line in the module's text, and how
  // often a warp executed it, with any of its lanes.
  std::vector<std::pair<unsigned, uint64_t>> take_executed() const;
  KernelData& data() const { return *data_; }

 private:
  std::unique_ptr<KernelData> data_;
};

// A PTX module. Throws Fault for text that is no PTX; an instruction that is not supported is a
// fault when executed.
class Program {
 public:
  explicit Program(const std::string& ptx);
  ~Program();
  Program(Program&&) noexcept;

  int target() const;                                 // 90 for sm_90
  std::vector<std::string> kernels() const;           // mangled names
  const Kernel* find(const std::string& name) const;  // null if there is none

 private:
  struct Data;
  std::unique_ptr<Data> data_;
};

// One launch, to its end; `parameters` as for cudaLaunchKernel, a pointer an argument. Throws
// Fault.
void run(const Kernel& kernel, const LaunchShape& shape, void* const* parameters,
         const GlobalMemory& memory, const Options& options);

}  // namespace ard::emulator
