#include "cuda/dtypes.h"
#include "cuda/fold_kernels.cuh"
#include "cuda/fold_launch.h"
#include "cuda/fold_plan.h"
#include "cuda/start.h"

namespace ard::cuda {

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
