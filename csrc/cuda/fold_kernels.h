// The kernel of fold_kernels.cuh, declared, and the table of layers that it takes.
#pragma once

#include "core/fold_params.h"
#include "cuda/platform.cuh"

namespace ard::cuda {

inline constexpr char kFoldKernels[] = "cuda/fold_kernels.cuh";

constexpr int kFoldThreads = 256;
// Vectors of 4 weights that a thread folds.
constexpr int kFoldVectors = 2;

// The layers of one launch lie in the parameters of the kernel, which are 4 KB at most: no copy to
// the device, and a captured graph holds them.
constexpr int kFoldTableLayers = 48;

struct FoldTable {
  FoldLayer layers[kFoldTableLayers];
  uint32_t first_block[kFoldTableLayers + 1];  // of each layer; from the last one on, of them all
  int32_t count;
  void* weights;
  float* affine;
};
static_assert(sizeof(FoldTable) <= 4096, "kernels have 4 KB of parameters");

template <typename OutT>
__global__ void fold_batch_norm_kernel(const FoldTable table);

}  // namespace ard::cuda
