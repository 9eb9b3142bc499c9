// The CUDA launcher of the folding, torch-free; see launch.h.
#pragma once

#include <cuda_runtime_api.h>

#include "core/fold_params.h"

namespace ard::cuda {

void launch_fold_batch_norm(const FoldParams& p, Dtype dtype, cudaStream_t stream);

}  // namespace ard::cuda
