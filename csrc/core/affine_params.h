// Plain structs of affine_relu and its backward pass, handed from the bindings to the CPU loops,
// the CUDA kernels and the emulator. All tensors but the coefficients share one memory order, in
// which the channel of element i is i / inner % channels. Pointers are device pointers on CUDA.
#pragma once

#include "core/config.h"

namespace ard {

struct AffineReluParams {
  const void* x;         // [numel] float, f16 or bf16
  const void* residual;  // [numel] of the same type, or null
  const float* scale;    // [channels], or null
  const float* shift;    // [channels], or null
  void* y;               // [numel]; may be x
  uint8_t* mask;         // [ceil(numel / 8)], or null; only with relu
  int64_t numel;
  int64_t channels;
  int64_t inner;  // elements of one channel in a row: 1 for channels_last
  bool relu;
};

struct AffineReluBackwardParams {
  const void* grad;     // [numel] float, f16 or bf16
  const uint8_t* mask;  // [ceil(numel / 8)], or null: every element passes
  const float* scale;   // [channels], or null
  void* out;            // [numel]
  int64_t numel;
  int64_t channels;
  int64_t inner;
};

}  // namespace ard
