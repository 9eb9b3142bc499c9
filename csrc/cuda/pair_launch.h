// The CUDA launcher of pair_loss (see launch.h).
#pragma once

#include <cuda_runtime_api.h>

#include "core/pair_params.h"
#include "core/params.h"

namespace ard::cuda {

// total: [] or null to leave the rows unsummed.
void launch_pair_loss(const PairLossParams& p, Dtype dtype, float* total, cudaStream_t stream);

}  // namespace ard::cuda
