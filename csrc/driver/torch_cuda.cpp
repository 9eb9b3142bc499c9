#include "driver/torch_cuda.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <type_traits>

namespace ard::driver {
namespace {

// As torch/csrc/inductor/aoti_torch/c/shim.h declares them; 0 is success.
struct Shims {
  int32_t (*aoti_torch_create_cuda_guard)(int32_t device, void** guard);
  int32_t (*aoti_torch_delete_cuda_guard)(void* guard);
  int32_t (*aoti_torch_get_current_cuda_stream)(int32_t device, void** stream);
};

Shims load() {
  // torch has loaded it already, out of sight of everyone who did not link it.
  void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  Shims shims{};
  const auto find = [&](auto& function, const char* name) {
    void* symbol = dlsym(RTLD_DEFAULT, name);
    if (!symbol && library) symbol = dlsym(library, name);
    if (!symbol) {
      throw std::runtime_error(std::string("ard_fast: this torch has no ") + name +
                               ": is it a CUDA build?");
    }
    function = reinterpret_cast<std::decay_t<decltype(function)>>(symbol);
  };
#define ARD_FIND(name) find(shims.name, #name)
  ARD_FIND(aoti_torch_create_cuda_guard);
  ARD_FIND(aoti_torch_delete_cuda_guard);
  ARD_FIND(aoti_torch_get_current_cuda_stream);
#undef ARD_FIND
  return shims;
}

const Shims& shims() {
  static const Shims loaded = load();
  return loaded;
}

void check(int32_t status, const char* what, int device) {
  if (status == 0) return;
  throw std::runtime_error(std::string("ard_fast: torch could not give ") + what +
                           " cuda:" + std::to_string(device));
}

}  // namespace

DeviceGuard::DeviceGuard(int device) {
  check(shims().aoti_torch_create_cuda_guard(device, &handle_), "a guard of", device);
}

DeviceGuard::~DeviceGuard() { shims().aoti_torch_delete_cuda_guard(handle_); }

cuda::Stream current_stream(int device) {
  void* stream = nullptr;
  check(shims().aoti_torch_get_current_cuda_stream(device, &stream), "the current stream of",
        device);
  return static_cast<cuda::Stream>(stream);
}

}  // namespace ard::driver
