// All threads that own one sample: those of one block, or of the blocks of a cluster. Each block
// has a contiguous share of the sample, which it can stage in its shared memory; only sums cross
// from block to block.
//
// Kernels over it use dynamic shared memory alone (SampleScratch first, what they stage behind it),
// so that it has the same layout in every block of a cluster.
#pragma once

#include "cuda/cluster.cuh"
#include "cuda/reduce.cuh"
#include "cuda/sample_plan.h"

namespace ard::cuda {

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
