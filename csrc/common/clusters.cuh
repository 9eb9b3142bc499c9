// Thread-block clusters (compute capability 9.0): a few blocks that run together on neighbouring
// multiprocessors, meet at a barrier of their own and write to one another's shared memory. How a
// launch asks whether there are any, how the blocks share a row or a sample, and the hardware's
// instructions; where it has none, every block is alone.
#pragma once

#include "common/launch.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ARD_CLUSTERS 1
#endif

namespace ard::cuda {

constexpr int kMaxClusterBlocks = 8;  // the most that every device with clusters can run

// Vectors of one block; the last blocks of a cluster may have fewer, or none.
ARD_HD int64_t share_size(int64_t vectors, int64_t blocks) {
  return (vectors + blocks - 1) / blocks;
}

// Bytes of an array of so many bytes, with the next one aligned.
ARD_HD int64_t padded16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// What a launch needs to know of the device.
struct DeviceLimits {
  int64_t max_shared;  // bytes that one block may have, static memory included
  int64_t multiprocessors;
  bool clusters;
};

// Compute capability, as 10 * major + minor, from which on compiled code can have clusters. A newer
// device that runs older code has none: what the code can is asked of it, not of the device.
constexpr int kClusterCode = 90;

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

// Those of the current device for a kernel. All variants of a kernel are compiled for the same
// architectures, so any of them may be asked.
template <auto kKernel>
DeviceLimits device_limits() {
  int device = 0, shared = 0, multiprocessors = 1, clusters = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  return DeviceLimits{shared, multiprocessors,
                      clusters && code_arch<kKernel>(device) >= kClusterCode};
}

// Blocks of this cluster, 1 for a kernel that was launched without clusters.
__device__ __forceinline__ unsigned cluster_blocks() {
#if defined(ARD_CLUSTERS)
  unsigned blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
#else
  return 1;
#endif
}

// Of this block within its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
#if defined(ARD_CLUSTERS)
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return 0;
#endif
}

// Of this cluster within the grid; of this block where there are none.
__device__ __forceinline__ unsigned cluster_index() {
#if defined(ARD_CLUSTERS)
  unsigned index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
#else
  return blockIdx.x;
#endif
}

// The two halves of the cluster's barrier, for every thread of every block in turn: what was
// written before the first half, also to other blocks, is seen by all after the second.
__device__ __forceinline__ void cluster_arrive() {
#if defined(ARD_CLUSTERS)
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

// Without the memory: all that it says is that this block has started.
__device__ __forceinline__ void cluster_arrive_relaxed() {
#if defined(ARD_CLUSTERS)
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(ARD_CLUSTERS)
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// *mine = value, of 4 or 8 bytes, in the shared memory of another block, which has the same layout.
// Only after a cluster barrier: before it the other block may not have started.
template <typename T>
__device__ __forceinline__ void store_to_block(T* mine, unsigned block, T value) {
#if defined(ARD_CLUSTERS)
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "one register, or a pair");
  const unsigned here = unsigned(__cvta_generic_to_shared(mine));
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(block));
  if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(there), "r"(bits) : "memory");
  } else {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    asm volatile("st.shared::cluster.b64 [%0], %1;" ::"r"(there), "l"(bits) : "memory");
  }
#else
  *mine = value;
#endif
}

}  // namespace ard::cuda
