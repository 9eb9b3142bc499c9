// A CUDA driver without a GPU, for the tests: libcuda.so.1 with two devices, which runs kernels on
// the host emulator. It has what csrc/driver/api.h asks of the driver, the functions of torch's
// CUDA library that csrc/driver/torch_cuda.h asks for, and, as fake_*, what the tests steer it by.
//
// Stricter than a driver where that shows more: a thread has no context until somebody gives it
// one, and a function is refused on any device but its own.
#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>

#include "cuda/rows.h"
#include "driver/api.h"
#include "testing/driver/registry.h"

using ard::driver::Context;
using ard::driver::LaunchConfig;
using ard::emu::Entry;

Entry*& ard::emu::Entry::first() {
  static Entry* entry = nullptr;
  return entry;
}

namespace {

enum Status {
  kSuccess = 0,
  kInvalidValue = 1,
  kInvalidDevice = 101,
  kInvalidContext = 201,
  kInvalidHandle = 400,
  kNotFound = 500,
  kLaunchFailed = 719,
};

struct DeviceKind {
  int multiprocessors, shared, clusters;
};
// One as an H100, one that is small and without clusters.
constexpr DeviceKind kDevices[] = {{132, 227 * 1024, 1}, {4, 99 * 1024, 0}};
constexpr int kDeviceCount = 2;
constexpr int kCodeArch[kDeviceCount] = {90, 86};

struct Function {
  Function(const Entry* entry, int device)
      : entry(entry),
        device(device),
        // Of those that have dynamic shared memory besides, the kernels with a block a row.
        static_shared(entry->name.find("_block_kernel") == std::string::npos
                          ? 0
                          : int(sizeof(ard::cuda::BlockScratch))) {
    forget();
  }

  // As after loading it: 48 KiB in all.
  void forget() { dynamic_shared = 48 * 1024 - static_shared; }

  const Entry* entry;
  int device, static_shared;
  int dynamic_shared;  // the most that a launch may have
};

struct State {
  std::recursive_mutex mutex;
  std::map<std::pair<std::string, int>, Function> functions;
  std::map<int, void*> streams;
  std::set<void*> capturing;
  std::string log;
  std::string fault;
  int fail_next = 0;
  int code_arch[kDeviceCount] = {kCodeArch[0], kCodeArch[1]};  // of every kernel
};

State& state() {
  static State all;
  return all;
}

thread_local int context = -1;  // its device

Function* known(void* handle) {
  for (auto& [name, function] : state().functions) {
    if (&function == handle) return &function;
  }
  return nullptr;
}

}  // namespace

extern "C" {
#define EXPORT __attribute__((visibility("default")))

EXPORT int cuCtxGetDevice(int* device) {
  if (context < 0) return kInvalidContext;
  *device = context;
  return kSuccess;
}

EXPORT int cuDevicePrimaryCtxRetain(Context* out, int device) {
  if (device < 0 || device >= kDeviceCount) return kInvalidDevice;
  *out = reinterpret_cast<Context>(std::uintptr_t(device + 1));
  return kSuccess;
}

EXPORT int cuCtxSetCurrent(Context given) {
  context = int(reinterpret_cast<std::uintptr_t>(given)) - 1;
  return kSuccess;
}

EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
  if (device < 0 || device >= kDeviceCount) return kInvalidDevice;
  const DeviceKind& kind = kDevices[device];
  switch (attribute) {
    case ard::driver::kMultiprocessors:
      *value = kind.multiprocessors;
      return kSuccess;
    case ard::driver::kMaxSharedPerBlock:
      *value = kind.shared;
      return kSuccess;
    case ard::driver::kClusterLaunch:
      *value = kind.clusters;
      return kSuccess;
  }
  return kInvalidValue;
}

EXPORT int cuFuncGetAttribute(int* value, int attribute, void* handle) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  const Function* function = known(handle);
  if (!function) return kInvalidHandle;
  switch (attribute) {
    case ard::driver::kStaticShared:
      *value = function->static_shared;
      return kSuccess;
    case ard::driver::kPtxVersion:
      *value = state().code_arch[function->device];
      return kSuccess;
  }
  return kInvalidValue;
}

EXPORT int cuFuncSetAttribute(void* handle, int attribute, int value) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  Function* function = known(handle);
  if (!function) return kInvalidHandle;
  if (attribute != ard::driver::kMaxDynamicShared || value < 0) return kInvalidValue;
  if (value + function->static_shared > kDevices[function->device].shared) return kInvalidValue;
  function->dynamic_shared = value;
  return kSuccess;
}

EXPORT int cuStreamIsCapturing(void* stream, int* status) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  *status = int(state().capturing.count(stream));
  return kSuccess;
}

EXPORT int cuLaunchKernelEx(const LaunchConfig* config, void* handle, void** parameters,
                            void** extra) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  if (const int status = std::exchange(state().fail_next, 0)) return status;
  const Function* function = known(handle);
  if (!function) return kInvalidHandle;
  if (context < 0) return kInvalidContext;
  if (context != function->device) return kInvalidHandle;
  const DeviceKind& kind = kDevices[context];
  unsigned cluster = 1;
  for (unsigned i = 0; i < config->attribute_count; ++i) {
    const auto& attribute = config->attributes[i];
    if (attribute.id != ard::driver::kClusterDimension) return kInvalidValue;
    if (attribute.value.cluster.y != 1 || attribute.value.cluster.z != 1) return kInvalidValue;
    cluster = attribute.value.cluster.x;
  }
  const bool flat =
      config->grid_y == 1 && config->grid_z == 1 && config->block_y == 1 && config->block_z == 1;
  if (extra || !flat || config->grid_x == 0 || config->block_x == 0) return kInvalidValue;
  if (config->block_x > 1024 || cluster > 8 || config->grid_x % cluster) return kInvalidValue;
  if (cluster > 1 && !kind.clusters) return kInvalidValue;
  // The hardware would start it, and each block would take itself for a sample's only one.
  if (cluster > 1 && state().code_arch[context] < ard::cuda::kClusterCode) return kInvalidValue;
  if (int64_t(config->shared_bytes) > function->dynamic_shared) return kInvalidValue;
  std::ostringstream line;
  line << function->entry->name << '\t' << context << '\t'
       << reinterpret_cast<std::uintptr_t>(config->stream) << '\t' << config->grid_x << '\t'
       << config->block_x << '\t' << config->shared_bytes << '\t' << cluster << '\n';
  state().log += line.str();
  try {
    function->entry->run({config->grid_x}, cluster, {config->block_x}, config->shared_bytes,
                         parameters);
  } catch (const std::exception& error) {
    state().fault = error.what();
    return kLaunchFailed;
  }
  return kSuccess;
}

EXPORT int cuGetErrorName(int status, const char** name) {
  static const std::map<int, const char*> names = {
      {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
      {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE"},
      {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
      {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
      {kNotFound, "CUDA_ERROR_NOT_FOUND"},
      {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
  };
  const auto found = names.find(status);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : kSuccess;
}

EXPORT int cuGetErrorString(int status, const char** text) {
  *text = status == kLaunchFailed ? state().fault.c_str() : "of the fake driver";
  return kSuccess;
}

// torch's: a device for a while, and its current stream. As torch's own guard, it need not give the
// thread a context.

EXPORT int32_t aoti_torch_create_cuda_guard(int32_t device, void** guard) {
  if (device < 0 || device >= kDeviceCount) return 1;
  *guard = new int(context);
  return 0;
}

EXPORT int32_t aoti_torch_delete_cuda_guard(void* guard) {
  int* before = static_cast<int*>(guard);
  context = *before;
  delete before;
  return 0;
}

EXPORT int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  *stream = state().streams[device];
  return 0;
}

// For the tests.

EXPORT void* fake_function(const char* name, int device) {
  const std::lock_guard<std::recursive_mutex> lock(state().mutex);
  for (const Entry* entry = Entry::first(); entry; entry = entry->next) {
    if (entry->name == name) {
      const auto place = state().functions.try_emplace({name, device}, Function(entry, device));
      return &place.first->second;
    }
  }
  return nullptr;
}

// All kernels' names, a line each.
EXPORT const char* fake_kernels() {
  static const std::string all = [] {
    std::string text;
    for (const Entry* entry = Entry::first(); entry; entry = entry->next)
      text += entry->name + "\n";
    return text;
  }();
  return all.c_str();
}

EXPORT void fake_set_stream(int device, void* stream) { state().streams[device] = stream; }

EXPORT void fake_set_capturing(void* stream, int capturing) {
  if (capturing) {
    state().capturing.insert(stream);
  } else {
    state().capturing.erase(stream);
  }
}

EXPORT void fake_set_code_arch(int device, int arch) { state().code_arch[device] = arch; }

// No function has asked for shared memory, and the code is again what fits the device.
EXPORT void fake_forget() {
  for (auto& [name, function] : state().functions) function.forget();
  std::copy(std::begin(kCodeArch), std::end(kCodeArch), state().code_arch);
}

EXPORT void fake_fail_next_launch(int status) { state().fail_next = status; }

// The launches since the last call, a line each: name, device, stream, blocks, threads, dynamic
// shared bytes, blocks of a cluster.
EXPORT const char* fake_take_log() {
  static std::string taken;
  taken = std::exchange(state().log, "");
  return taken.c_str();
}

}  // extern "C"
