#include "cuda/device.h"
#include "cuda/dtypes.h"
#include "cuda/kd_loss_kernels.cuh"
#include "cuda/launch.h"
#include "cuda/launch_plan.h"
#include "cuda/rows.h"
#include "cuda/start.h"

namespace ard::cuda {
namespace {

template <typename T, int kVec>
void launch_rows(const KdLossParams& p, const RowPlan& plan, Stream stream) {
  if (plan.warp) {
    start<kd_loss_warp_kernel<T, kVec>>({plan.blocks, plan.threads, plan.shared_bytes}, stream, p);
  } else if (plan.cached) {
    start<kd_loss_block_kernel<T, kVec, true>>({plan.blocks, plan.threads, plan.shared_bytes},
                                               stream, p);
  } else {
    start<kd_loss_block_kernel<T, kVec, false>>({plan.blocks, plan.threads}, stream, p);
  }
}

}  // namespace

void launch_kd_loss(const KdLossParams& p, Dtype dtype, float* total, Stream stream) {
  if (p.batch > 0) {
    for_dtype(dtype, [&](auto example) {
      using T = decltype(example);
      const RowPlan plan = plan_kd_loss(p, sizeof(T), max_dynamic_shared(sizeof(BlockScratch)));
      if (plan.vector) {
        launch_rows<T, 16 / sizeof(T)>(p, plan, stream);
      } else {
        launch_rows<T, 1>(p, plan, stream);
      }
    });
  }
  if (total) launch_sum_rows(p.loss_rows, p.batch, total, stream);
}

void launch_sum_rows(const float* rows, int64_t count, float* total, Stream stream) {
  start<sum_rows_kernel>({1, sum_rows_threads(count)}, stream, rows, count, total);
}

void launch_scale_rows(void* grad, Dtype dtype, int64_t numel, int64_t classes, const float* scale,
                       bool per_row, float factor, Stream stream) {
  if (numel == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const ScaleRowsPlan plan =
        plan_scale_rows(grad, numel, classes, sizeof(T), per_row, kScaleThreads);
    T* data = static_cast<T*>(grad);
    if (plan.vector) {
      start<scale_rows_kernel<T, 16 / sizeof(T)>>({plan.blocks, kScaleThreads}, stream, data, numel,
                                                  classes, scale, per_row, factor);
    } else {
      start<scale_rows_kernel<T, 1>>({plan.blocks, kScaleThreads}, stream, data, numel, classes,
                                     scale, per_row, factor);
    }
  });
}

}  // namespace ard::cuda
