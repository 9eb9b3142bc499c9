#include "cuda/fold_kernels.cuh"
#include "cuda/fold_launch.h"
#include "cuda/fold_plan.h"
#include "cuda/launch_helpers.cuh"

namespace ard::cuda {

void launch_fold_batch_norm(const FoldParams& p, Dtype dtype, cudaStream_t stream) {
  FoldTable table{};
  for (int64_t first = 0; first < p.count;) {
    const int count = plan_fold(p, first, &table);
    first += count;
    const unsigned blocks = grid_size(table.first_block[count]);
    if (blocks == 0) continue;
    for_dtype(dtype, [&](auto element) {
      fold_batch_norm_kernel<decltype(element)><<<blocks, kFoldThreads, 0, stream>>>(table);
    });
  }
}

}  // namespace ard::cuda
