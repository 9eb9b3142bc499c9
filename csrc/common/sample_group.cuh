// Kernels that treat a sample as a whole: all threads that own one sample are those of one block,
// or of the blocks of a cluster. Each block has a contiguous share of the sample, which it can
// stage in its shared memory; only sums cross from block to block.
//
// Kernels over it use dynamic shared memory alone (SampleScratch first, what they stage behind it),
// so that it has the same layout in every block of a cluster.
#pragma once

#include "common/clusters.cuh"
#include "common/reductions.cuh"

namespace ard::cuda {

constexpr int kMaxSampleSums = 4;  // at once

// What the threads of a sample tell one another; twice, for two sums in a row.
struct SampleScratch {
  double of_warps[2][kMaxSampleSums][32];
  double of_blocks[2][kMaxSampleSums][kMaxClusterBlocks];
};
static_assert(sizeof(SampleScratch) % 16 == 0, "what is staged behind it needs 16-byte alignment");

struct SamplePlan {
  bool cached;           // the share of a block stays in shared memory, else it is read twice
  int cluster;           // blocks a sample
  int threads;           // of a block
  int64_t blocks;        // of the grid
  int64_t shared_bytes;  // of a block, SampleScratch included
};

// Bytes that a share of `elements` takes when an L2 step keeps it on chip: gradient, iterate and
// image, which it needs twice.
inline int64_t staged_l2_bytes(int64_t elements, int64_t grad_size) {
  return padded16(elements * grad_size) + 2 * padded16(elements * 4);
}

// staged_bytes(vectors): what a share of so many vectors takes in shared memory.
template <typename Bytes>
SamplePlan plan_samples(const DeviceLimits& device, int64_t batch, int64_t vectors,
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
