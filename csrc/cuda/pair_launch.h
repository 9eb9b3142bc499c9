// The CUDA launcher of pair_loss (see launch.h).
#pragma once

#include "core/pair_params.h"
#include "core/params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

// total: [] or null to leave the rows unsummed.
void launch_pair_loss(const PairLossParams& p, Dtype dtype, float* total, Stream stream);

}  // namespace ard::cuda
