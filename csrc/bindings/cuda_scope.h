// Where a CUDA op runs.
#pragma once

#include "bindings/checks.h"
#include "cuda/geometry.h"

#if defined(ARD_KERNELS_BY_NAME)
#include "driver/api.h"
#include "driver/torch_cuda.h"
#else
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#endif

namespace ard {

// The tensor's device for as long as it lives, and torch's current stream there.
class Scope {
 public:
#if defined(ARD_KERNELS_BY_NAME)
  explicit Scope(const Tensor& t) : guard_(t.get_device_index()) {
    driver::make_current(t.get_device_index());
    stream_ = driver::current_stream(t.get_device_index());
  }
  // A launch that failed has thrown.
  void check_launch() const {}
#else
  explicit Scope(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cuda::Stream>(stream);
  }
  // Throws what went wrong with the launches so far.
  void check_launch() const { STD_CUDA_KERNEL_LAUNCH_CHECK(); }
#endif
  cuda::Stream stream() const { return stream_; }

 private:
#if defined(ARD_KERNELS_BY_NAME)
  driver::DeviceGuard guard_;
#else
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cuda::Stream stream_ = nullptr;
};

}  // namespace ard
