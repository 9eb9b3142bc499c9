// The CUDA launcher of the folding, torch-free; see launch.h.
#pragma once

#include "core/fold_params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

void launch_fold_batch_norm(const FoldParams& p, Dtype dtype, Stream stream);

}  // namespace ard::cuda
