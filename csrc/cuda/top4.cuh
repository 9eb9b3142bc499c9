// The four largest logits of a row from those that each thread has found.
#pragma once

#include "core/attack_gradient_math.h"
#include "cuda/reduce.cuh"

namespace ard::cuda {

// Of two rankings: their upper half is, entry by entry, the better of one and of the other read
// backwards, and two rounds of exchanges put that in order (a bitonic merge).
__device__ __forceinline__ Top4 merged(const Top4& a, const Top4& b) {
  Top4 out = a;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (ranks_before(b.at[3 - k], a.at[k])) out.at[k] = b.at[3 - k];
  }
  put_in_order(out.at[0], out.at[2]);
  put_in_order(out.at[1], out.at[3]);
  put_in_order(out.at[0], out.at[1]);
  put_in_order(out.at[2], out.at[3]);
  return out;
}

__device__ __forceinline__ Top4 warp_top4(Top4 mine) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    Top4 other;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      other.at[k].value = __shfl_xor_sync(0xffffffffu, mine.at[k].value, lanes);
      other.at[k].index = __shfl_xor_sync(0xffffffffu, mine.at[k].index, lanes);
    }
    mine = merged(mine, other);
  }
  return mine;
}

struct RankingWarp : WarpGroup {
  __device__ __forceinline__ Top4 top4(const Top4& mine) { return warp_top4(mine); }
};

// Called once by every thread of the block.
struct RankingBlock : BlockGroup {
  Top4* lists;  // [32], shared

  __device__ __forceinline__ RankingBlock(BlockScratch& scratch, Top4* shared_lists)
      : BlockGroup(scratch), lists(shared_lists) {}

  __device__ __forceinline__ Top4 top4(const Top4& mine) {
    const Top4 of_warp = warp_top4(mine);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    if (lane == 0) lists[warp] = of_warp;
    __syncthreads();
    return warp_top4(lane < int(blockDim.x) / 32 ? lists[lane] : top4_empty());
  }
};

}  // namespace ard::cuda
