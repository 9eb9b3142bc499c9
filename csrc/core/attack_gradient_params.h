// What the gradients that attacks follow are computed from: handed from the bindings to the CPU
// loops, the CUDA kernels and the emulator. Pointers are device pointers on CUDA.
#pragma once

#include "core/config.h"

namespace ard {

// The numbers are those of the operator's argument.
enum class AttackLoss { ce = 0, margin = 1, dlr = 2, dlr_targeted = 3 };

struct AttackGradientParams {
  const void* logits;             // [B, C]
  const int64_t* labels;          // [B]
  const int64_t* target_classes;  // [B], or null but for dlr_targeted
  void* grad;                     // [B, C] contiguous
  float* loss_rows;               // [B], or null
  bool* correct;                  // [B], or null together with loss_rows
  float* grad_scale;              // [B], the power of two that each row of grad was multiplied by,
                                  // or null for none
  int64_t batch;
  int64_t classes;
  int64_t logits_stride;  // elements between rows
  AttackLoss loss;
  float kappa;  // of the margin
};

}  // namespace ard
