// What the launchers ask of the current device, and of a kernel's code there.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>

#include "cuda/geometry.h"
#include "cuda/sample_plan.h"

namespace ard::cuda {

// What one block may have beside `static_bytes` of static shared memory.
inline int64_t max_dynamic_shared(int64_t static_bytes) {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return int64_t(bytes) - static_bytes;
}

// The architecture that a kernel's code was written for, where it comes from PTX too: that of
// __CUDA_ARCH__ in it, which the machine code's need not be. Asked once for each device.
template <auto kKernel>
int code_arch(int device) {
  static std::atomic<int> known[64] = {};
  std::atomic<int>* const slot = device < 64 ? &known[device] : nullptr;
  if (const int arch = slot ? slot->load(std::memory_order_relaxed) : 0) return arch;
  cudaFuncAttributes attributes{};
  cudaFuncGetAttributes(&attributes, kKernel);
  if (slot) slot->store(attributes.ptxVersion, std::memory_order_relaxed);
  return attributes.ptxVersion;
}

// The device, as plan_samples wants to know it for a kernel without static shared memory. All
// variants of a kernel are compiled for the same architectures, so any of them may be asked.
template <auto kKernel>
SampleDevice sample_device() {
  int device = 0, shared = 0, multiprocessors = 1, clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  return SampleDevice{shared, multiprocessors,
                      clusters && code_arch<kKernel>(device) >= kClusterCode};
}

}  // namespace ard::cuda
