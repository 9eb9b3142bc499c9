// What the extension calls of libtorch_cuda, and of libtorch's allocations: "CUDA" tensors are CPU
// tensors here. The linker sends calls of the wrapped functions through here (--wrap).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstring>

#include "emulator/device.h"

using ard::emulator::Device;

namespace {

// New memory may be written, and holds nothing: NaN in every float type.
void add_new_tensor(AtenTensorHandle tensor) {
  void* data = nullptr;
  int64_t bytes = 0;
  aoti_torch_get_data_ptr(tensor, &data);
  aoti_torch_get_storage_size(tensor, &bytes);
  if (bytes == 0) return;
  std::memset(data, 0xff, size_t(bytes));
  Device::get().memory.add(data, size_t(bytes), true);
}

}  // namespace

extern "C" {

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError torch_c10_cuda_check_msg(int32_t, const char*, const char*, uint32_t, bool,
                                        char** message) {
  const std::string error = Device::get().take_error();
  *message = error.empty() ? nullptr : strdup(("emulated GPU: " + error).c_str());
  return AOTI_TORCH_SUCCESS;
}

void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }

AOTITorchError __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t,
                                               int32_t, int32_t, AtenTensorHandle*);
AOTITorchError __wrap_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes,
                                               const int64_t* strides, int32_t dtype,
                                               int32_t device_type, int32_t device_index,
                                               AtenTensorHandle* tensor) {
  const AOTITorchError status = __real_aoti_torch_empty_strided(dim, sizes, strides, dtype,
                                                                device_type, device_index, tensor);
  if (status == AOTI_TORCH_SUCCESS) add_new_tensor(*tensor);
  return status;
}

}  // extern "C"
