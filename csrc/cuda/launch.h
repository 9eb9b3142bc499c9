// The CUDA launchers, torch-free: they choose a kernel variant and start it on a stream. Errors of
// the launch itself are left for the caller to read with cudaGetLastError.
#pragma once

#include <cuda_runtime_api.h>

#include "core/params.h"

namespace ard::cuda {

void launch_pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, cudaStream_t stream);

void launch_random_start(const RandomStartParams& p, cudaStream_t stream);

// total: [] or null to leave the rows unsummed.
void launch_kd_loss(const KdLossParams& p, Dtype dtype, float* total, cudaStream_t stream);

void launch_sum_rows(const float* rows, int64_t count, float* total, cudaStream_t stream);

// grad [B, C] contiguous, scale [] or, per_row, [B].
void launch_scale_rows(void* grad, Dtype dtype, int64_t numel, int64_t classes, const float* scale,
                       bool per_row, float factor, cudaStream_t stream);

}  // namespace ard::cuda
