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

constexpr int kSampleThreads = 512;  // the most of a block
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kMaxSampleSums = 4;  // at once
static_assert(kMaxSampleSums * kMaxClusterBlocks == 32, "a lane for each sum of each block");

// What the threads of a sample tell one another.
struct SampleScratch {
  float4 result;
  double of_warps[kMaxSampleSums][kSampleWarps];
  double of_blocks[2][kMaxSampleSums][kMaxClusterBlocks];  // for two sums in a row
};
static_assert(sizeof(SampleScratch) % 16 == 0, "what is staged behind it needs 16-byte alignment");

struct SamplePlan {
  bool cached;           // the share of a block stays in shared memory, else it is read twice
  int64_t share;         // vectors of a block
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
  // More blocks for samples of which two do not fit a multiprocessor (while the threads of one wait
  // for a sum, the other moves bytes), and for batches that would leave the device idle.
  while (device.clusters && plan.cluster < kMaxClusterBlocks &&
         share_size(vectors, 2 * plan.cluster) >= kFewVectors &&
         (2 * needed(plan.cluster) > device.max_shared ||
          2 * plan.cluster * batch <= device.multiprocessors)) {
    plan.cluster *= 2;
  }
  plan.share = share_size(vectors, plan.cluster);
  plan.cached = needed(plan.cluster) <= device.max_shared;
  plan.shared_bytes = plan.cached ? needed(plan.cluster) : kScratch;
  plan.blocks = batch * plan.cluster;
  // About two vectors a thread.
  plan.threads = 32;
  while (plan.threads < kSampleThreads && 2 * plan.threads < plan.share) plan.threads *= 2;
  return plan;
}

inline Geometry geometry_of(const SamplePlan& plan) {
  return {plan.blocks, plan.threads, plan.shared_bytes, plan.cluster};
}

// The vectors [begin, end) of a sample.
struct SampleShare {
  int64_t begin, end;
};

// The sums of up to four values over the lanes of a warp: that of values[n] in the lanes 8 n to
// 8 n + 7. Half of the lanes go on with half of the values: six exchanges instead of five for each.
template <int kCount>
__device__ __forceinline__ double warp_sums(const double (&values)[kCount]) {
  static_assert(kCount <= 4, "eight lanes a value");
  const auto exchanged = [](bool upper, double low, double high, int lanes) {
    return (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, lanes);
  };
  double sum = values[0];
  if constexpr (kCount > 1) {
    const bool upper = threadIdx.x & 16, odd = threadIdx.x & 8;
    const double first = exchanged(upper, values[0], kCount > 2 ? values[2] : 0.0, 16);
    const double second = exchanged(upper, values[1], kCount > 3 ? values[3] : 0.0, 16);
    sum = exchanged(odd, first, second, 8);
  } else {
    sum += __shfl_xor_sync(0xffffffffu, sum, 16);
    sum += __shfl_xor_sync(0xffffffffu, sum, 8);
  }
#pragma unroll
  for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  return sum;
}

// Every thread makes the group, before it touches shared memory, then calls the same reductions in
// the same order, at least one.
class SampleGroup {
 public:
  __device__ __forceinline__ explicit SampleGroup(SampleScratch& scratch)
      : scratch_(scratch), blocks_(cluster_blocks()), rank_(cluster_rank()) {
    // Says that this block is there; the first sum waits for the others.
    if (blocks_ > 1) cluster_arrive_relaxed();
  }

  __device__ __forceinline__ int64_t sample() const { return cluster_index(); }

  // One thread of all, for what is written once a sample.
  __device__ __forceinline__ bool leads() const { return rank_ == 0 && threadIdx.x == 0; }

  // This block's part of a sample of so many vectors, `size` (of the plan) a block. Thread t takes
  // begin + t, then every blockDim.x-th: always the same ones, so what it staged it may read back
  // without a barrier.
  __device__ __forceinline__ SampleShare share(int64_t vectors, int64_t size) const {
    const int64_t begin = int64_t(rank_) * size, end = begin + size;
    return SampleShare{begin, end < vectors ? end : vectors};
  }

  // What finish(sums) makes, up to four floats, of the sums of the values of all threads; they are
  // added up in an order that never changes. One warp of each block finishes for its threads.
  template <int kCount, typename Finish>
  __device__ __forceinline__ auto reduce(const double (&values)[kCount], Finish finish) {
    using Result = decltype(finish(values));
    static_assert(sizeof(Result) <= sizeof(scratch_.result) && alignof(Result) <= 16);
    const int warp = int(threadIdx.x) / 32, warps = int(blockDim.x) / 32;
    const int lane = int(threadIdx.x) % 32, number = lane / 8, block = lane % 8;
    const bool owns = number < kCount;
    double sum = warp_sums(values);
    if (owns && block == 0) scratch_.of_warps[number][warp] = sum;
    __syncthreads();
    if (warp == 0) {
      double of_warps[kCount];
#pragma unroll
      for (int n = 0; n < kCount; ++n)
        of_warps[n] = lane < warps ? scratch_.of_warps[n][lane] : 0.0;
      sum = warp_sums(of_warps);
    }
    if (blocks_ > 1) {
      const bool counts = warp == 0 && owns && block < int(blocks_);
      if (!together_) cluster_wait();
      together_ = true;
      if (counts) store_to_block(&scratch_.of_blocks[turn_][number][rank_], unsigned(block), sum);
      cluster_arrive();
      cluster_wait();
      if (warp == 0) {
        sum = counts ? scratch_.of_blocks[turn_][number][block] : 0.0;
#pragma unroll
        for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
      }
      turn_ ^= 1;
    }
    if (warp == 0) {
      double sums[kCount];
#pragma unroll
      for (int n = 0; n < kCount; ++n) sums[n] = __shfl_sync(0xffffffffu, sum, 8 * n);
      const Result result = finish(sums);
      float4 all{};
      memcpy(&all, &result, sizeof(result));
      if (lane == 0) scratch_.result = all;
    }
    __syncthreads();
    const float4 all = scratch_.result;
    Result result;
    memcpy(&result, &all, sizeof(result));
    return result;
  }

 private:
  SampleScratch& scratch_;
  unsigned blocks_, rank_;
  int turn_ = 0;
  bool together_ = false;  // all blocks of the cluster are known to have started
};

}  // namespace ard::cuda
