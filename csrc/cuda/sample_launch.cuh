// Starting a kernel over whole samples (sample_group.cuh) with the geometry of its plan.
#pragma once

#include "cuda/launch_helpers.cuh"
#include "cuda/sample_plan.h"

namespace ard::cuda {

// The current device, as the plan wants to know it.
inline SampleDevice sample_device() {
  int device = 0, shared = 0, multiprocessors = 1, clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  return SampleDevice{shared, multiprocessors, clusters != 0};
}

template <typename Params>
void launch_samples(void (*kernel)(Params), const SamplePlan& plan, cudaStream_t stream,
                    const Params& params) {
  constexpr int64_t kWithoutAsking = 48 * 1024;
  if (plan.shared_bytes > kWithoutAsking) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         int(plan.shared_bytes));
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(plan.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid_size(plan.blocks));
  config.blockDim = dim3(unsigned(plan.threads));
  config.dynamicSmemBytes = size_t(plan.shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = plan.cluster > 1 ? 1 : 0;
  cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace ard::cuda
