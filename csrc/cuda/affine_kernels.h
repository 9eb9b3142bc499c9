// The kernels of affine_kernels.cuh, declared, and what they share with their launchers.
#pragma once

#include "core/affine_params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kAffineKernels[] = "cuda/affine_kernels.cuh";

constexpr int kAffineThreads = 256;
constexpr int kAffineVectors = 2;  // of 16 bytes, a thread

// How the 16-byte vectors lie among the channels.
enum class Spread {
  one,  // each in one channel, or there are no coefficients
  row,  // each over consecutive channels, whose coefficients are 16-byte vectors too
  any,
};

template <typename T, Spread kSpread, int kVec>
__global__ void affine_relu_kernel(AffineReluParams p, uint32_t run);

template <typename T>
__global__ void affine_relu_bytes_kernel(AffineReluParams p);

template <typename T, Spread kSpread, int kVec>
__global__ void affine_relu_backward_kernel(AffineReluBackwardParams p, uint32_t run);

template <typename T>
__global__ void affine_relu_backward_bytes_kernel(AffineReluBackwardParams p);

}  // namespace ard::cuda
