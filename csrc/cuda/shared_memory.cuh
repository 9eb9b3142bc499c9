// Dynamic shared memory beyond the 48 KiB that every kernel may have, for the launchers.
#pragma once

#include <cuda_runtime_api.h>

#include "core/config.h"

namespace ard::cuda {

// What one block of the current device may have beside `static_bytes` of static shared memory.
inline int64_t max_dynamic_shared(int64_t static_bytes) {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return int64_t(bytes) - static_bytes;
}

// More than 48 KiB a block must be asked for.
template <typename Kernel>
void allow_dynamic_shared(Kernel* kernel, int bytes) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

}  // namespace ard::cuda
