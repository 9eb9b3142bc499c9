// The loops of affine_relu and its backward pass over a part of the elements; called from several
// threads at once. Torch-free.
#pragma once

#include "core/affine_params.h"
#include "core/params.h"

namespace ard::cpu {

// Parts begin at multiples of this, so that no two threads write to one byte of the mask.
constexpr int64_t kAffineBlock = 1024;

void affine_relu(const AffineReluParams& p, Dtype dtype, int64_t begin, int64_t end);

void affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, int64_t begin,
                          int64_t end);

}  // namespace ard::cpu
