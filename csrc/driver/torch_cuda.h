// The part of torch's own CUDA library that an op needs. It exists only in a CUDA build of torch,
// while this must load with any, so nothing here is linked.
#pragma once

#include "cuda/geometry.h"

namespace ard::driver {

// The device, current for as long as this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  void* handle_ = nullptr;
};

// torch's, on the device.
cuda::Stream current_stream(int device);

}  // namespace ard::driver
