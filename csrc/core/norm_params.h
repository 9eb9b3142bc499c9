// Plain structs of the operators that treat one sample as a whole. B batch, E elements per sample;
// samples follow one another in memory. Pointers are device pointers on CUDA.
#pragma once

#include "core/params.h"

namespace ard {

struct NormStepParams {
  float* x_adv;                       // [B, E] updated in place
  const void* grad;                   // [B, E] float, f16 or bf16, memory order of x_adv
  const float* x;                     // [B, E] memory order of x_adv
  float* momentum;                    // [B, E] updated in place; MI-FGSM only
  const float* step_size_per_sample;  // [B] or null
  const float* eps_per_sample;        // [B] or null
  int64_t batch;
  int64_t sample_numel;  // E
  float step_size;       // used when step_size_per_sample is null
  float eps;             // used when eps_per_sample is null
  float decay;           // of the momentum; MI-FGSM only
  float direction;       // +1 ascends the loss, -1 descends it (targeted)
  float lower, upper;    // pixel bounds
};

struct SelectParams {
  float* best;             // [B, E] updated in place
  const float* candidate;  // [B, E] memory order of best
  const float* best_loss;  // [B]
  const float* loss;       // [B] of the candidate
  float* best_loss_out;    // [B] shares no memory with the other two
  int64_t batch;
  int64_t sample_numel;  // E
  bool lower;            // the lower loss wins
};

}  // namespace ard
