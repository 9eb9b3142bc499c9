// CPU loops over a range of work; the bindings split the range among threads. Torch-free.
#pragma once

#include "core/half.h"
#include "core/params.h"

namespace ard::cpu {

// Elements [begin, end) of the flattened tensors.
void pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, int64_t begin, int64_t end);

// Groups [begin, end) of 4 elements; every sample has ceil(E / 4) of them.
void random_start(const RandomStartParams& p, int64_t begin, int64_t end);

// Rows [begin, end).
void kd_loss(const KdLossParams& p, Dtype dtype, int64_t begin, int64_t end);

// Rows [begin, end): grad *= scale of the row. grad is [rows, classes].
void scale_rows(void* grad, Dtype dtype, int64_t classes, const float* scale, bool per_row,
                float factor, int64_t begin, int64_t end);

// Pieces [begin, end) of the Auto-PGD step: every sample has apgd_linf_pieces of them, which any
// threads may do in any order; of the L2 step, a piece is a sample.
int64_t apgd_linf_pieces(int64_t sample_numel);
void apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end);
void apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end);

// "x86-64-v4", "x86-64-v3" or "baseline": the clones the loader picked.
const char* simd_level();

}  // namespace ard::cpu
