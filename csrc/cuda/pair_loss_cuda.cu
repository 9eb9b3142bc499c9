#include "cuda/launch.h"
#include "cuda/launch_helpers.cuh"
#include "cuda/pair_launch.h"
#include "cuda/pair_loss_kernels.cuh"
#include "cuda/pair_plan.h"
#include "cuda/shared_memory.cuh"

namespace ard::cuda {
namespace {

template <typename T, int kVec, bool kMart>
void launch_rows(const PairLossParams& p, const RowPlan& plan, cudaStream_t stream) {
  const unsigned grid = grid_size(plan.blocks);
  const int shared = int(plan.shared_bytes);
  if (plan.warp) {
    pair_loss_warp_kernel<T, kVec, kMart><<<grid, plan.threads, shared, stream>>>(p);
  } else if (plan.cached) {
    allow_dynamic_shared(pair_loss_block_kernel<T, kVec, kMart, true>, shared);
    pair_loss_block_kernel<T, kVec, kMart, true><<<grid, plan.threads, shared, stream>>>(p);
  } else {
    pair_loss_block_kernel<T, kVec, kMart, false><<<grid, plan.threads, 0, stream>>>(p);
  }
}

template <typename T, int kVec>
void launch_loss(const PairLossParams& p, const RowPlan& plan, cudaStream_t stream) {
  if (p.mart) {
    launch_rows<T, kVec, true>(p, plan, stream);
  } else {
    launch_rows<T, kVec, false>(p, plan, stream);
  }
}

}  // namespace

void launch_pair_loss(const PairLossParams& p, Dtype dtype, float* total, cudaStream_t stream) {
  if (p.batch > 0) {
    for_dtype(dtype, [&](auto example) {
      using T = decltype(example);
      const RowPlan plan = plan_pair_loss(p, sizeof(T), max_dynamic_shared(sizeof(BlockScratch)));
      if (plan.vector) {
        launch_loss<T, 16 / sizeof(T)>(p, plan, stream);
      } else {
        launch_loss<T, 1>(p, plan, stream);
      }
    });
  }
  if (total) launch_sum_rows(p.loss_rows, p.batch, total, stream);
}

}  // namespace ard::cuda
