// The CUDA launchers, torch-free: they choose a kernel variant and start it on a stream (start.h).
// Of the errors of the launch itself, those of the CUDA runtime are left for the caller to read.
#pragma once

#include "core/params.h"
#include "cuda/geometry.h"

namespace ard::cuda {

void launch_pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, Stream stream);

void launch_random_start(const RandomStartParams& p, Stream stream);

// total: [] or null to leave the rows unsummed.
void launch_kd_loss(const KdLossParams& p, Dtype dtype, float* total, Stream stream);

void launch_sum_rows(const float* rows, int64_t count, float* total, Stream stream);

// grad [B, C] contiguous, scale [] or, per_row, [B].
void launch_scale_rows(void* grad, Dtype dtype, int64_t numel, int64_t classes, const float* scale,
                       bool per_row, float factor, Stream stream);

}  // namespace ard::cuda
