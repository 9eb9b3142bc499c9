// What the launchers ask of the current device. The host emulator brings its own versions.
#pragma once

#include "cuda/sample_plan.h"

#if defined(ARD_KERNELS_BY_NAME)
#include "driver/device.h"
#elif !defined(ARD_CUDA_ON_HOST)
#include <cuda_runtime_api.h>

namespace ard::cuda {

// What one block may have beside `static_bytes` of static shared memory.
inline int64_t max_dynamic_shared(int64_t static_bytes) {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return int64_t(bytes) - static_bytes;
}

// The device, as plan_samples wants to know it.
inline SampleDevice sample_device() {
  int device = 0, shared = 0, multiprocessors = 1, clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  return SampleDevice{shared, multiprocessors, clusters != 0};
}

}  // namespace ard::cuda
#endif
