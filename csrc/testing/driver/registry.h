// The kernels by name, for the fake driver. Put in front of a launcher's source (-include), this
// makes the host compiler's kernels out of it, and of every start<source, kernel>() in it an entry
// of the registry. The launchers themselves are not run here: those of _C_rtc are.
#pragma once

#include "testing/cuda_on_host.h"
// The emulator's CUDA vocabulary comes first.
#include <string>
#include <typeinfo>
#include <utility>

#include "cuda/geometry.h"
#include "cuda/sample_plan.h"
#include "driver/kernel.h"

namespace ard::emu {

// A kernel, and how to run it with its arguments where the driver's interface has them.
class Entry {
 public:
  using Run = void (*)(Dim3 grid, unsigned cluster, Dim3 block, std::size_t shared_bytes,
                       void** parameters);

  Entry(const std::type_info& named, Run run)
      : name(driver::name_of(named)), run(run), next(first()) {
    first() = this;
  }

  static Entry*& first();

  const std::string name;
  const Run run;
  Entry* const next;
};

template <auto kKernel, typename Signature = decltype(kKernel)>
struct Registered;

template <auto kKernel, typename... Parameters>
struct Registered<kKernel, void (*)(Parameters...)> {
  template <std::size_t... kIndex>
  static void run_with(std::index_sequence<kIndex...>, Dim3 grid, unsigned cluster, Dim3 block,
                       std::size_t shared_bytes, void** parameters) {
    launch_in_clusters(kKernel, grid, cluster, block, shared_bytes,
                       *static_cast<std::decay_t<Parameters>*>(parameters[kIndex])...);
  }

  static void run(Dim3 grid, unsigned cluster, Dim3 block, std::size_t shared_bytes,
                  void** parameters) {
    run_with(std::index_sequence_for<Parameters...>(), grid, cluster, block, shared_bytes,
             parameters);
  }

  static inline Entry entry{typeid(driver::Named<kKernel>), &run};
};

}  // namespace ard::emu

namespace ard::cuda {

template <const char* kSource, auto kKernel, typename... Arguments>
void start(const Geometry&, Stream, const Arguments&...) {
  (void)&emu::Registered<kKernel>::entry;
}

inline int64_t max_dynamic_shared(int64_t) { return 0; }
template <const char* kSource, auto kKernel>
SampleDevice sample_device(Stream) {
  return {};
}

}  // namespace ard::cuda
