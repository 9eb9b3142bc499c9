// What cuda/start.h declares, for kernels of which there is the declaration alone.
#pragma once

#include <type_traits>

#include "driver/kernel.h"

namespace ard::driver {

template <const char* kSource, auto kKernel, typename Signature = decltype(kKernel)>
struct ByName;

template <const char* kSource, auto kKernel, typename... Parameters>
struct ByName<kSource, kKernel, void (*)(Parameters...)> {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...),
                "the driver copies arguments byte by byte");

  static inline Kernel kernel{kSource, typeid(Named<kKernel>)};

  // The parameters have the kernel's own types, so whatever is given is converted to them.
  static void start(const cuda::Geometry& geometry, cuda::Stream stream, Parameters... parameters) {
    void* arguments[] = {&parameters...};
    kernel.start(geometry, stream, arguments);
  }
};

}  // namespace ard::driver

namespace ard::cuda {

template <const char* kSource, auto kKernel, typename... Arguments>
void start(const Geometry& geometry, Stream stream, const Arguments&... arguments) {
  driver::ByName<kSource, kKernel>::start(geometry, stream, arguments...);
}

}  // namespace ard::cuda
