// What the kernels over rows of logits share with their launchers.
#pragma once

#include "core/config.h"

namespace ard::cuda {

// Of a kernel that has a warp for each row.
constexpr int kWarpsPerBlock = 4;

// Room for one value a warp, twice: with two buffers used in turn, the barrier of one reduction
// also tells that everyone has read the buffer before it, so that one barrier a reduction is
// enough.
struct BlockScratch {
  float value[2][32];
  int index[2][32];
};

}  // namespace ard::cuda
