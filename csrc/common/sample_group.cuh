// Kernels that treat a sample as a whole: all threads that own one sample are those of one block,
// or of the blocks of a cluster. Each block has a contiguous share of the sample, which it can
// stage in its shared memory; only sums cross from block to block.
//
// Kernels over it use dynamic shared memory alone (SampleScratch first, what they stage behind it),
// so that it has the same layout in every block of a cluster.
#pragma once

#include "common/launch.h"
#include "common/reductions.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define ARD_CLUSTERS 1
#endif

namespace ard::cuda {

constexpr int kMaxClusterBlocks = 8;  // the most that every device with clusters can run
constexpr int kMaxSampleSums = 4;     // at once

// What the threads of a sample tell one another; twice, for two sums in a row.
struct SampleScratch {
  double of_warps[2][kMaxSampleSums][32];
  double of_blocks[2][kMaxSampleSums][kMaxClusterBlocks];
};
static_assert(sizeof(SampleScratch) % 16 == 0, "what is staged behind it needs 16-byte alignment");

// Vectors of one block; the last blocks of a cluster may have fewer, or none.
ARD_HD int64_t share_size(int64_t vectors, int64_t blocks) {
  return (vectors + blocks - 1) / blocks;
}

// What a launch needs to know of the device.
struct SampleDevice {
  int64_t max_shared;  // bytes that one block may have
  int64_t multiprocessors;
  bool clusters;
};

struct SamplePlan {
  bool cached;           // the share of a block stays in shared memory, else it is read twice
  int cluster;           // blocks a sample
  int threads;           // of a block
  int64_t blocks;        // of the grid
  int64_t shared_bytes;  // of a block, SampleScratch included
};

// Bytes of an array of so many bytes, with the next one aligned.
ARD_HD int64_t padded16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// Bytes that a share of `elements` takes when an L2 step keeps it on chip: gradient, iterate and
// image, which it needs twice.
inline int64_t staged_l2_bytes(int64_t elements, int64_t grad_size) {
  return padded16(elements * grad_size) + 2 * padded16(elements * 4);
}

// staged_bytes(vectors): what a share of so many vectors takes in shared memory.
template <typename Bytes>
SamplePlan plan_samples(const SampleDevice& device, int64_t batch, int64_t vectors,
                        Bytes staged_bytes) {
  constexpr int64_t kScratch = int64_t(sizeof(SampleScratch));
  constexpr int64_t kFewVectors = 256;  // not worth sharing among blocks
  const auto needed = [&](int cluster) {
    return kScratch + staged_bytes(share_size(vectors, cluster));
  };
  SamplePlan plan{};
  plan.cluster = 1;
  // More blocks for samples too large for one, and for batches that would leave the device idle.
  while (device.clusters && plan.cluster < kMaxClusterBlocks &&
         share_size(vectors, 2 * plan.cluster) >= kFewVectors &&
         (needed(plan.cluster) > device.max_shared ||
          2 * plan.cluster * batch <= device.multiprocessors)) {
    plan.cluster *= 2;
  }
  plan.cached = needed(plan.cluster) <= device.max_shared;
  plan.shared_bytes = plan.cached ? needed(plan.cluster) : kScratch;
  plan.blocks = batch * plan.cluster;
  // About two vectors a thread.
  plan.threads = 32;
  while (plan.threads < 1024 && 2 * plan.threads < share_size(vectors, plan.cluster))
    plan.threads *= 2;
  return plan;
}

inline Geometry geometry_of(const SamplePlan& plan) {
  return {plan.blocks, plan.threads, plan.shared_bytes, plan.cluster};
}

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

// Thread-block clusters (compute capability 9.0): a few blocks that run together on neighbouring
// multiprocessors, meet at a barrier of their own and write to one another's shared memory. Where
// the hardware has none, every block is alone.

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

// The vectors [begin, end) of a sample.
struct SampleShare {
  int64_t begin, end;
};

// Every thread makes the group, then calls the same sums in the same order, at least one.
class SampleGroup {
 public:
  __device__ __forceinline__ explicit SampleGroup(SampleScratch& scratch)
      : scratch_(scratch), blocks_(cluster_blocks()), rank_(cluster_rank()) {
    // Says that this block is there; the first sum waits for the others.
    if (blocks_ > 1) cluster_arrive();
  }

  __device__ __forceinline__ int64_t sample() const {
    return int64_t(blockIdx.x) / int64_t(blocks_);
  }

  // One thread of all, for what is written once a sample.
  __device__ __forceinline__ bool leads() const { return rank_ == 0 && threadIdx.x == 0; }

  // This block's part of a sample of so many vectors. Thread t takes begin + t, then every
  // blockDim.x-th: always the same ones, so what it staged it may read back without a barrier.
  __device__ __forceinline__ SampleShare share(int64_t vectors) const {
    const int64_t size = share_size(vectors, int64_t(blocks_));
    const int64_t begin = int64_t(rank_) * size;
    const int64_t end = begin + size;
    return SampleShare{begin, end < vectors ? end : vectors};
  }

  // Replaces the values of every thread by their sums over all threads, in an order that never
  // changes. As in BlockGroup two buffers in turn make one barrier enough.
  template <int kCount>
  __device__ __forceinline__ void sum(double (&values)[kCount]) {
    static_assert(kCount <= kMaxSampleSums, "SampleScratch has no room for so many sums");
    const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      values[n] = warp_reduce(values[n], SumOp());
      if (threadIdx.x % 32 == 0) scratch_.of_warps[turn_][n][warp] = values[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kCount; ++n) values[n] = total(scratch_.of_warps[turn_][n], warps);
    if (blocks_ > 1) {
      if (!together_) cluster_wait();
      together_ = true;
      if (threadIdx.x < blocks_) {
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
          store_to_block(&scratch_.of_blocks[turn_][n][rank_], threadIdx.x, values[n]);
        }
      }
      cluster_arrive();
      cluster_wait();
#pragma unroll
      for (int n = 0; n < kCount; ++n)
        values[n] = total(scratch_.of_blocks[turn_][n], int(blocks_));
    }
    turn_ ^= 1;
  }

 private:
  static __device__ __forceinline__ double total(const double* slots, int count) {
    double all = slots[0];
    for (int i = 1; i < count; ++i) all += slots[i];
    return all;
  }

  SampleScratch& scratch_;
  unsigned blocks_, rank_;
  int turn_ = 0;
  bool together_ = false;  // all blocks of the cluster are known to have started
};

}  // namespace ard::cuda
