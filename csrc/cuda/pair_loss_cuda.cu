#include "cuda/device.h"
#include "cuda/dtypes.h"
#include "cuda/launch.h"
#include "cuda/pair_launch.h"
#include "cuda/pair_loss_kernels.cuh"
#include "cuda/pair_plan.h"
#include "cuda/rows.h"
#include "cuda/start.h"

namespace ard::cuda {
namespace {

template <typename T, int kVec, bool kMart>
void launch_rows(const PairLossParams& p, const RowPlan& plan, Stream stream) {
  if (plan.warp) {
    start<pair_loss_warp_kernel<T, kVec, kMart>>({plan.blocks, plan.threads, plan.shared_bytes},
                                                 stream, p);
  } else if (plan.cached) {
    start<pair_loss_block_kernel<T, kVec, kMart, true>>(
        {plan.blocks, plan.threads, plan.shared_bytes}, stream, p);
  } else {
    start<pair_loss_block_kernel<T, kVec, kMart, false>>({plan.blocks, plan.threads}, stream, p);
  }
}

template <typename T, int kVec>
void launch_loss(const PairLossParams& p, const RowPlan& plan, Stream stream) {
  if (p.mart) {
    launch_rows<T, kVec, true>(p, plan, stream);
  } else {
    launch_rows<T, kVec, false>(p, plan, stream);
  }
}

}  // namespace

void launch_pair_loss(const PairLossParams& p, Dtype dtype, float* total, Stream stream) {
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
