// Where an operator runs, and how it is registered. There are three builds: of the CPU loops alone,
// of the CUDA launchers as well (USE_CUDA), and the tests' of the launchers for an emulated GPU
// (USE_CUDA and ARD_EMULATED; csrc/emulator), which works on CPU tensors under operators of its
// own.
#pragma once

#include "common/checks.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#if defined(ARD_EMULATED)
#define ARD_LIBRARY ard_fast_emulated
#else
#define ARD_LIBRARY ard_fast
#endif

// Registers implementations that are for all devices.
#if defined(USE_CUDA) && !defined(ARD_EMULATED)
#define ARD_OPERATORS(m)                                                           \
  static void ard_register(torch::stable::detail::StableLibrary& m);               \
  STABLE_TORCH_LIBRARY_IMPL(ARD_LIBRARY, CPU, library) { ard_register(library); }  \
  STABLE_TORCH_LIBRARY_IMPL(ARD_LIBRARY, CUDA, library) { ard_register(library); } \
  static void ard_register(torch::stable::detail::StableLibrary& m)
#else
#define ARD_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(ARD_LIBRARY, CPU, m)
#endif

namespace ard {

inline bool on_gpu(const Tensor& t) {
#if defined(ARD_EMULATED)
  return true;
#else
  return t.is_cuda();
#endif
}

// Runs an operator where the tensor is: by gpu(stream) on torch's current stream of its device, or
// by cpu(begin, end) in torch's threads over parts of [0, count), of at least `grain`. Both are
// generic lambdas: a build without one of them then does not link what that one calls.
template <typename Gpu, typename Cpu>
void run(const Tensor& t, const Gpu& gpu, int64_t count, int64_t grain, const Cpu& cpu) {
#if defined(USE_CUDA)
  if (on_gpu(t)) {
    const torch::stable::accelerator::DeviceGuard guard(t.get_device_index());
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    gpu(static_cast<cuda::Stream>(stream));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return;
  }
#endif
#if !defined(ARD_EMULATED)
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { cpu(begin, end); });
#endif
}

}  // namespace ard
