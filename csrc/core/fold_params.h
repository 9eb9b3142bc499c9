// Plain structs of the folding, handed from the bindings to the CPU loop, the CUDA kernel and the
// emulator. O output channels. Pointers are device pointers on CUDA.
#pragma once

#include "core/params.h"

namespace ard {

struct FoldLayer {
  const float* weight;  // [O, inner, spatial] in memory order, or null for a norm alone
  const float* bias;    // [O] of the convolution, or null
  const float* gamma;   // [O] or null for 1
  const float* beta;    // [O] or null for 0
  const float* mean;    // [O], or null without a norm
  const float* var;     // [O], or null without a norm
  int32_t weight_at;    // first element of [O, spatial, inner] among the folded weights
  int32_t scale_at;     // of [O] among scales and shifts; norm alone
  int32_t shift_at;     // of [O] there
  int32_t channels;     // O
  int32_t inner;        // of one output channel; O * inner * spatial < 2^31
  int32_t spatial;      // 1 where weight and folded weight have one memory order
  float eps;
};

struct FoldParams {
  const FoldLayer* layers;  // on the host
  int64_t count;
  void* weights;  // of the folded dtype
  float* affine;  // scales and shifts
};

}  // namespace ard
