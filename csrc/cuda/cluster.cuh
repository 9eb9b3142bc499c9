// Thread-block clusters (compute capability 9.0): a few blocks that run together on neighbouring
// multiprocessors, meet at a barrier of their own and write to one another's shared memory. Where
// the hardware has none, every block is alone. The host emulator brings its own versions.
#pragma once

#include "cuda/platform.cuh"

#if !defined(ARD_CUDA_ON_HOST)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ARD_CLUSTERS 1
#endif

namespace ard::cuda {

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

// The two halves of the cluster's barrier, for every thread of every block in turn: what was
// written before the first half, also to other blocks, is seen by all after the second.
__device__ __forceinline__ void cluster_arrive() {
#if defined(ARD_CLUSTERS)
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if defined(ARD_CLUSTERS)
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// *mine = value in the shared memory of another block, which has the same layout. Only after a
// cluster barrier: before it the other block may not have started.
__device__ __forceinline__ void store_to_block(double* mine, unsigned block, double value) {
#if defined(ARD_CLUSTERS)
  const unsigned here = unsigned(__cvta_generic_to_shared(mine));
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(block));
  asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(there), "d"(value) : "memory");
#else
  *mine = value;
#endif
}

}  // namespace ard::cuda
#endif
