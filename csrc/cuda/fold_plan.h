// Launch geometry of the folding, shared by the CUDA launcher and the host emulator.
#pragma once

#include "core/fold_params.h"
#include "cuda/launch_plan.h"

namespace ard::cuda {

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

inline int64_t fold_blocks(const FoldLayer& layer) {
  const int64_t pairs = int64_t(layer.channels) * layer.inner;
  if (!layer.weight) return ceil_div(layer.channels, kFoldThreads);
  if (layer.spatial > 1) return ceil_div(pairs, kFoldThreads);
  return ceil_div(pairs, kFoldThreads * kFoldVectors * 4);
}

// The table of layers from `first` on, as many as it holds; returns how many. Its grid has
// first_block[count] blocks.
inline int plan_fold(const FoldParams& p, int64_t first, FoldTable* table) {
  const int64_t left = p.count - first;
  table->count = int32_t(left < kFoldTableLayers ? left : kFoldTableLayers);
  table->weights = p.weights;
  table->affine = p.affine;
  uint32_t blocks = 0;  // fewer than 2^31 weights and as many scales and shifts give fewer blocks
  for (int i = 0; i < table->count; ++i) {
    table->layers[i] = p.layers[first + i];
    table->first_block[i] = blocks;
    blocks += uint32_t(fold_blocks(table->layers[i]));
  }
  for (int i = table->count; i <= kFoldTableLayers; ++i) table->first_block[i] = blocks;
  return table->count;
}

}  // namespace ard::cuda
