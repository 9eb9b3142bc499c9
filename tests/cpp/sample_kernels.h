// Small kernels with known right and wrong synchronisation, to test the emulator itself.
#pragma once

#include "testing/cuda_on_host.h"

namespace ard::sample {

/// Sum of in[0..n) into out[blockIdx.x], by warps and then by one warp over the block.
template <typename T>
__global__ void block_sum_kernel(const T* in, T* out, int n) {
  __shared__ T parts[32];
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int stride = static_cast<int>(gridDim.x * blockDim.x);
  T sum = 0;
  for (int i = first; i < n; i += stride) sum += in[i];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : T(0);
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lanes);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

/// data reversed, `rounds` times, through dynamic shared memory; both barriers are needed.
template <bool kFirstBarrier, bool kSecondBarrier>
__global__ void reverse_kernel(float* data, int rounds) {
  ARD_DYNAMIC_SHARED(float, tile);
  float value = data[threadIdx.x];
  for (int i = 0; i < rounds; ++i) {
    tile[threadIdx.x] = value;
    if (kFirstBarrier) __syncthreads();
    value = tile[blockDim.x - 1 - threadIdx.x];
    if (kSecondBarrier) __syncthreads();
  }
  data[threadIdx.x] = value;
}

/// Each lane takes its right neighbour's value through shared memory.
template <bool kWarpBarrier>
__global__ void rotate_warp_kernel(float* data) {
  __shared__ float slots[1024];
  slots[threadIdx.x] = data[threadIdx.x];
  if (kWarpBarrier) {
    __syncwarp();
  } else {
    // A shuffle brings the lanes together but orders no memory.
    (void)__shfl_sync(0xffffffffu, 0, 0);
  }
  const unsigned lane = threadIdx.x % 32;
  data[threadIdx.x] = slots[threadIdx.x - lane + (lane + 1) % 32];
}

/// out[rank of the block] = the others' values summed, `rounds` times, through distributed shared
/// memory; both barriers are needed, and a slot for each round spares a third.
template <bool kFirstBarrier, bool kSecondBarrier>
__global__ void cluster_sum_kernel(double* out, int rounds) {
  ARD_DYNAMIC_SHARED(double, slots);
  if (kFirstBarrier) {
    cuda::cluster_arrive();
    cuda::cluster_wait();
  }
  const unsigned rank = cuda::cluster_rank(), blocks = cuda::cluster_blocks();
  double sum = rank + 1.0;
  for (int i = 0; i < rounds; ++i) {
    double* const turn = slots + static_cast<unsigned>(i) % 2 * blocks;
    if (threadIdx.x < blocks) cuda::store_to_block(&turn[rank], threadIdx.x, sum);
    if (kSecondBarrier) {
      cuda::cluster_arrive();
      cuda::cluster_wait();
    }
    sum = 0.0;
    for (unsigned b = 0; b < blocks; ++b) sum += turn[b];
  }
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

}  // namespace ard::sample
