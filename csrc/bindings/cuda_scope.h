// Where a CUDA op runs.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "bindings/checks.h"
#include "cuda/geometry.h"

// Registers the operators' CUDA implementations: in the tests' build for the emulated GPU those of
// operators of its own, on CPU tensors (csrc/emulator).
#if defined(ARD_EMULATED)
#define ARD_CUDA_IMPLEMENTATIONS(m) STABLE_TORCH_LIBRARY_IMPL(ard_fast_emulated, CPU, m)
#else
#define ARD_CUDA_IMPLEMENTATIONS(m) STABLE_TORCH_LIBRARY_IMPL(ard_fast, CUDA, m)
#endif

namespace ard {

// The tensor's device for as long as it lives, and torch's current stream there.
class Scope {
 public:
  explicit Scope(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cuda::Stream>(stream);
  }
  // Throws what went wrong with the launches so far.
  void check_launch() const { STD_CUDA_KERNEL_LAUNCH_CHECK(); }
  cuda::Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Stream stream_ = nullptr;
};

}  // namespace ard
