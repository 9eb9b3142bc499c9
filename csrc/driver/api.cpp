#include "driver/api.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace ard::driver {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

Api load() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    throw std::runtime_error(std::string("ard_fast: the CUDA driver could not be loaded: ") +
                             dlerror());
  }
  Api api{};
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (!function) {
      throw std::runtime_error(std::string("ard_fast: the CUDA driver (") + kLibrary +
                               ") is too old: it has no " + name);
    }
  };
#define ARD_FIND(name) find(api.name, #name)
  ARD_FIND(cuCtxGetDevice);
  ARD_FIND(cuCtxSetCurrent);
  ARD_FIND(cuDevicePrimaryCtxRetain);
  ARD_FIND(cuDeviceGetAttribute);
  ARD_FIND(cuFuncGetAttribute);
  ARD_FIND(cuFuncSetAttribute);
  ARD_FIND(cuLaunchKernelEx);
  ARD_FIND(cuStreamIsCapturing);
  ARD_FIND(cuGetErrorName);
  ARD_FIND(cuGetErrorString);
#undef ARD_FIND
  return api;
}

}  // namespace

const Api& api() {
  static const Api loaded = load();
  return loaded;
}

void check(Result result, const char* what) {
  if (result == 0) return;
  const char* name = nullptr;
  const char* text = nullptr;
  api().cuGetErrorName(result, &name);
  api().cuGetErrorString(result, &text);
  throw std::runtime_error(std::string("ard_fast: ") + what + ": " +
                           (name ? name : "unknown CUDA error") + " (" + std::to_string(result) +
                           (text ? std::string("), ") + text : ")"));
}

void make_current(Device device) {
  Device now = -1;
  if (api().cuCtxGetDevice(&now) == 0 && now == device) return;
  Context context = nullptr;
  // Never released: torch keeps it to the end of the process too, and this is once a thread.
  check(api().cuDevicePrimaryCtxRetain(&context, device), "the context of the device");
  check(api().cuCtxSetCurrent(context), "the context of the device");
}

Device current_device() {
  Device device = -1;
  check(api().cuCtxGetDevice(&device), "the current device");
  return device;
}

}  // namespace ard::driver
