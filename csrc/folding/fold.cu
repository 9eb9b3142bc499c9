// The folding of all layers of a table: one pass, no shared memory, no communication.
#include "common/launch.h"
#include "common/vectors.cuh"
#include "folding/fold.h"

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

// The layer that a block works on: the last one whose blocks begin at or before it.
__device__ __forceinline__ int fold_layer_of(const FoldTable& table, uint32_t block) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_block[middle] <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// The weights [first, first + 4), 0 past the end.
__device__ __forceinline__ Vec<float, 4> load_four(const float* from, uint32_t first,
                                                   uint32_t numel, bool wide) {
  if (wide && first + 4 <= numel) return load_vec<4>(from + first);
  Vec<float, 4> weight{};
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    if (first + j < numel) weight.v[j] = from[first + j];
  }
  return weight;
}

// Folds four weights that lie in the memory order of the folded ones; they may be of several
// channels when these are short.
template <typename OutT>
__device__ __forceinline__ void fold_four(const FoldLayer& layer, OutT* to, uint32_t first,
                                          uint32_t numel, const Vec<float, 4>& weight) {
  const uint32_t inner = uint32_t(layer.inner);
  uint32_t channel = first / inner, within = first - channel * inner;
  float scale = fold_scale(layer, channel);
  Floats<4> folded;
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    if (within == inner && first + j < numel) {
      within = 0;
      scale = fold_scale(layer, ++channel);
    }
    folded[j] = mul_rn(scale, weight.v[j]);
    ++within;
  }
  const Vec<OutT, 4> out = from_floats<OutT>(folded);
  if (first + 4 <= numel) {
    store_vec<4>(to + first, out);
    return;
  }
#pragma unroll
  for (uint32_t j = 0; j < 4; ++j) {
    if (first + j < numel) to[first + j] = out.v[j];
  }
}

// Weights [O, inner, spatial] to [O, spatial, inner]: a thread takes what lies at one (output
// channel, inner) pair, so that what a warp writes lies together. What it reads in turn lies in
// the cache lines that its first read fetched.
template <typename OutT>
__device__ __forceinline__ void fold_pair(const FoldLayer& layer, OutT* to, uint32_t pair) {
  const uint32_t inner = uint32_t(layer.inner), spatial = uint32_t(layer.spatial);
  const uint32_t channel = pair / inner;
  const float* from = layer.weight + int64_t(pair) * spatial;
  to += int64_t(channel) * spatial * inner + (pair - channel * inner);
  const float scale = fold_scale(layer, channel);
#pragma unroll 9
  for (uint32_t s = 0; s < spatial; ++s) {
    to[int64_t(s) * inner] = fold_weight<OutT>(scale, from[s]);
  }
}

// Blocks first_block[l] to first_block[l + 1] fold layer l.
template <typename OutT>
__global__ void __launch_bounds__(kFoldThreads) fold_batch_norm_kernel(const FoldTable table) {
  const int l = fold_layer_of(table, blockIdx.x);
  const FoldLayer& layer = table.layers[l];
  const uint32_t block = blockIdx.x - table.first_block[l];
  const uint32_t threads = (table.first_block[l + 1] - table.first_block[l]) * kFoldThreads;
  const uint32_t thread = block * kFoldThreads + threadIdx.x;
  if (layer.weight) {
    OutT* to = static_cast<OutT*>(table.weights) + layer.weight_at;
    const uint32_t pairs = uint32_t(layer.channels) * uint32_t(layer.inner);
    if (layer.spatial > 1) {
      if (thread < pairs) fold_pair(layer, to, thread);
    } else {
      const bool wide = reinterpret_cast<uintptr_t>(layer.weight) % 16 == 0;
      const uint32_t first = (block * kFoldVectors * kFoldThreads + threadIdx.x) * 4;
      constexpr uint32_t kStep = kFoldThreads * 4;
      Vec<float, 4> weight[kFoldVectors];  // asked for all at once
#pragma unroll
      for (uint32_t v = 0; v < kFoldVectors; ++v) {
        weight[v] = load_four(layer.weight, first + v * kStep, pairs, wide);
      }
#pragma unroll
      for (uint32_t v = 0; v < kFoldVectors; ++v) {
        const uint32_t at = first + v * kStep;
        if (at < pairs) fold_four(layer, to, at, pairs, weight[v]);
      }
    }
  }
  for (uint32_t channel = thread; channel < uint32_t(layer.channels); channel += threads) {
    fold_channel(layer, channel, fold_scale(layer, channel), table.affine);
  }
}

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

void launch_fold_batch_norm(const FoldParams& p, Dtype dtype, Stream stream) {
  FoldTable table{};
  for (int64_t first = 0; first < p.count;) {
    const int count = plan_fold(p, first, &table);
    first += count;
    const int64_t blocks = table.first_block[count];
    if (blocks == 0) continue;
    for_dtype(dtype, [&](auto element) {
      start<fold_batch_norm_kernel<decltype(element)>>({blocks, kFoldThreads}, stream, table);
    });
  }
}

}  // namespace ard::cuda
