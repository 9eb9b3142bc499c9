#include "cuda/kd_loss_kernels.cuh"
#include "cuda/launch.h"
#include "cuda/launch_helpers.cuh"
#include "cuda/launch_plan.h"
#include "cuda/shared_memory.cuh"

namespace ard::cuda {
namespace {

template <typename T, int kVec>
void launch_rows(const KdLossParams& p, const RowPlan& plan, cudaStream_t stream) {
  const unsigned grid = grid_size(plan.blocks);
  const int shared = int(plan.shared_bytes);
  if (plan.warp) {
    kd_loss_warp_kernel<T, kVec><<<grid, plan.threads, shared, stream>>>(p);
  } else if (plan.cached) {
    allow_dynamic_shared(kd_loss_block_kernel<T, kVec, true>, shared);
    kd_loss_block_kernel<T, kVec, true><<<grid, plan.threads, shared, stream>>>(p);
  } else {
    kd_loss_block_kernel<T, kVec, false><<<grid, plan.threads, 0, stream>>>(p);
  }
}

}  // namespace

void launch_kd_loss(const KdLossParams& p, Dtype dtype, float* total, cudaStream_t stream) {
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

void launch_sum_rows(const float* rows, int64_t count, float* total, cudaStream_t stream) {
  sum_rows_kernel<<<1, sum_rows_threads(count), 0, stream>>>(rows, count, total);
}

void launch_scale_rows(void* grad, Dtype dtype, int64_t numel, int64_t classes, const float* scale,
                       bool per_row, float factor, cudaStream_t stream) {
  if (numel == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const ScaleRowsPlan plan =
        plan_scale_rows(grad, numel, classes, sizeof(T), per_row, kScaleThreads);
    const unsigned grid = grid_size(plan.blocks);
    T* data = static_cast<T*>(grad);
    if (plan.vector) {
      scale_rows_kernel<T, 16 / sizeof(T)>
          <<<grid, kScaleThreads, 0, stream>>>(data, numel, classes, scale, per_row, factor);
    } else {
      scale_rows_kernel<T, 1>
          <<<grid, kScaleThreads, 0, stream>>>(data, numel, classes, scale, per_row, factor);
    }
  });
}

}  // namespace ard::cuda
