// How launchers start a kernel:
//
//   start<pgd_linf_step_kernel<float, 4>>({blocks, threads}, stream, arguments...)
//
// and what they ask of the current device.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/config.h"

// Dynamic shared memory of a block as an array of T.
#define ARD_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char ard_shared[]; \
  T* name = reinterpret_cast<T*>(ard_shared)

namespace ard::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

struct Geometry {
  int64_t blocks;
  int64_t threads;           // of a block
  int64_t shared_bytes = 0;  // dynamic shared memory of a block
  int64_t cluster = 1;       // blocks that run together
};

// Dynamic shared memory from which on a kernel must ask for it: the hardware grants 48 KiB together
// with the kernel's static arrays, and those of every kernel here are far below 16 KiB
// (scripts/check_nvcc.py).
constexpr int64_t kSharedWithoutAsking = 32 * 1024;

inline unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) {
    throw std::runtime_error("ard_fast: tensor too large for one launch: " +
                             std::to_string(blocks) + " blocks, at most 2^31 - 1");
  }
  return unsigned(blocks);
}

// What one block may have beside `static_bytes` of static shared memory.
inline int64_t max_dynamic_shared(int64_t static_bytes) {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return int64_t(bytes) - static_bytes;
}

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

// Calls body with the values as types, for kernels with variants.
template <typename Body>
void for_bool(bool value, Body body) {
  value ? body(std::true_type{}) : body(std::false_type{});
}

template <typename Body>
void for_bools(bool first, bool second, Body body) {
  for_bool(first, [&](auto one) { for_bool(second, [&](auto two) { body(one, two); }); });
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
