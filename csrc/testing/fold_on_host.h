// The folding launched on the emulator with the tables and grids that the CUDA launcher would use.
#pragma once

#include "testing/cuda_on_host.h"
// The kernels come after the emulator's CUDA vocabulary.
#include "cuda/fold_kernels.cuh"
#include "cuda/fold_plan.h"

namespace ard::emu {

template <typename OutT>
void fold_batch_norm(const FoldParams& p) {
  cuda::FoldTable table{};
  for (int64_t first = 0; first < p.count;) {
    const int count = cuda::plan_fold(p, first, &table);
    first += count;
    const unsigned blocks = table.first_block[count];
    if (blocks == 0) continue;
    launch(cuda::fold_batch_norm_kernel<OutT>, blocks, cuda::kFoldThreads, 0, table);
  }
}

}  // namespace ard::emu
