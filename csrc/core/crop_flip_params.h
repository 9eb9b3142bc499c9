// Plain struct of the augmentation, handed from the bindings to the CPU loops, the CUDA kernel and
// the emulator. B batch, N images. Pointers are device pointers on CUDA.
#pragma once

#include "core/config.h"

namespace ard {

struct CropFlipParams {
  const uint8_t* images;     // [N, C, H, W] contiguous
  const int64_t* positions;  // [B] which image
  const int64_t* seed;       // [1], or null when the views are given
  const int64_t* ids;        // [N] what the draw of each image is keyed by, or null: its position
  const int64_t* given;      // [B] views, or null when they are drawn
  float* x;                  // [B, C, H, W], or [B, H, W, C] when channels_last
  int64_t* view;             // [B]
  int64_t count;             // N
  int64_t batch;
  int32_t channels, height, width;  // C * H * W < 2^31
  int32_t padding;                  // of zeros, on all four sides
  float scale_high, scale_low;      // of to_unit, from unit_scale
  bool flip;                        // whether to draw flips
  bool channels_last;
};

}  // namespace ard
