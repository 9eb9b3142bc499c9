// Starting a kernel: the one place that knows how. Launchers call
//
//   start<pgd_linf_step_kernel<float, 4>>({blocks, threads}, stream, arguments...)
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>

#include "cuda/device.h"
#include "cuda/geometry.h"

namespace ard::cuda {

// To the most that the kernel can have, and once: threads whose launches differ in size then never
// take from one another what they have asked for.
template <auto kKernel>
void allow_dynamic_shared() {
  static std::atomic<uint64_t> allowed{0};  // bits of devices
  int device = 0;
  cudaGetDevice(&device);
  const uint64_t bit = device < 64 ? uint64_t(1) << device : 0;
  if (allowed.load(std::memory_order_relaxed) & bit) return;
  cudaFuncAttributes attributes{};
  cudaFuncGetAttributes(&attributes, kKernel);
  cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       int(max_dynamic_shared(int64_t(attributes.sharedSizeBytes))));
  allowed.fetch_or(bit, std::memory_order_relaxed);
}

// Errors of the launch are left for the caller to read with cudaGetLastError.
template <auto kKernel, typename... Arguments>
void start(const Geometry& geometry, Stream stream, const Arguments&... arguments) {
  const unsigned grid = grid_size(geometry.blocks), threads = unsigned(geometry.threads);
  const size_t shared = size_t(geometry.shared_bytes);
  if (geometry.shared_bytes > kSharedWithoutAsking) allow_dynamic_shared<kKernel>();
  if (geometry.cluster <= 1) {
    kKernel<<<grid, threads, shared, stream>>>(arguments...);
    return;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(geometry.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  cudaLaunchKernelEx(&config, kKernel, arguments...);
}

}  // namespace ard::cuda
