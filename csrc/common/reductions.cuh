// Reductions over the threads that share a row: one warp, or the whole block. Every thread gets the
// result; the order of operations is fixed, so results are the same in every run.
#pragma once

#include "common/config.h"

namespace ard::cuda {

struct SumOp {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct MaxOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return a > b ? a : b; }
};

struct MinOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return a < b ? a : b; }
};

// The largest value and where it is; the lowest index among equals, so that all threads agree.
struct Largest {
  float value;
  int index;
};

__device__ __forceinline__ Largest larger(Largest a, Largest b) {
  const bool second = b.value > a.value || (b.value == a.value && b.index < a.index);
  return second ? b : a;
}

template <typename T, typename Op>
__device__ __forceinline__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = op(value, __shfl_xor_sync(0xffffffffu, value, lanes));
  }
  return value;
}

__device__ __forceinline__ Largest warp_largest(Largest mine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    const Largest other{__shfl_xor_sync(0xffffffffu, mine.value, lanes),
                        __shfl_xor_sync(0xffffffffu, mine.index, lanes)};
    mine = larger(mine, other);
  }
  return mine;
}

// The 32 threads of a warp on one row.
struct WarpGroup {
  __device__ __forceinline__ int rank() const { return int(threadIdx.x) % 32; }
  __device__ __forceinline__ int size() const { return 32; }

  template <typename Op>
  __device__ __forceinline__ float reduce(float value, Op op) {
    return warp_reduce(value, op);
  }

  __device__ __forceinline__ Largest largest(Largest mine) { return warp_largest(mine); }
};

// Room for one value a warp, twice: with two buffers used in turn, the barrier of one reduction
// also tells that everyone has read the buffer before it, so that one barrier a reduction is
// enough.
struct BlockScratch {
  float value[2][32];
  int index[2][32];
};

// All threads of a block on one row. Every thread calls the same reductions in the same order.
struct BlockGroup {
  BlockScratch& scratch;
  int turn = 0;

  __device__ __forceinline__ explicit BlockGroup(BlockScratch& s) : scratch(s) {}
  __device__ __forceinline__ int rank() const { return int(threadIdx.x); }
  __device__ __forceinline__ int size() const { return int(blockDim.x); }

  template <typename Op>
  __device__ __forceinline__ float reduce(float value, Op op) {
    const float mine = warp_reduce(value, op);
    float* slots = scratch.value[turn];
    turn ^= 1;
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = mine;
    __syncthreads();
    float all = slots[0];
    for (int w = 1; w < int(blockDim.x) / 32; ++w) all = op(all, slots[w]);
    return all;
  }

  __device__ __forceinline__ Largest largest(Largest mine) {
    mine = warp_largest(mine);
    float* values = scratch.value[turn];
    int* indices = scratch.index[turn];
    turn ^= 1;
    if (threadIdx.x % 32 == 0) {
      values[threadIdx.x / 32] = mine.value;
      indices[threadIdx.x / 32] = mine.index;
    }
    __syncthreads();
    Largest all{values[0], indices[0]};
    for (int w = 1; w < int(blockDim.x) / 32; ++w)
      all = larger(all, Largest{values[w], indices[w]});
    return all;
  }
};

}  // namespace ard::cuda
