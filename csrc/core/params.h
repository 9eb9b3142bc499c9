// Plain structs handed from the bindings to the CPU loops, the CUDA kernels and the emulator.
// Pointers are device pointers on CUDA. B batch, E elements per sample, C classes.
#pragma once

#include "core/config.h"

namespace ard {

// Of gradients and logits; pixels are always float.
enum class Dtype { f32, f16, bf16 };

struct PgdLinfParams {
  float* x_adv;                       // [numel] updated in place
  const void* grad;                   // [numel] float, f16 or bf16, memory order of x_adv
  const float* x;                     // [numel] memory order of x_adv
  const float* step_size_per_sample;  // [B] or null
  const float* eps_per_sample;        // [B] or null
  int64_t numel;
  int64_t sample_numel;  // E; used when a per-sample pointer is given
  float step_size;       // used when step_size_per_sample is null
  float eps;             // used when eps_per_sample is null
  float direction;       // +1 ascends the loss, -1 descends it (targeted)
  float lower, upper;    // pixel bounds
};

struct RandomStartParams {
  float* out;                   // [B, E] same memory order as x
  const float* x;               // [B, E]
  const float* eps_per_sample;  // [B] or null
  const int64_t* seed;          // [1]
  const int64_t* sample_ids;    // [B] or null: the position in the batch
  int64_t batch;
  int64_t sample_numel;  // E
  int64_t channels;      // memory order within a sample: [E / channels, channels],
                         // 1 when the sample is contiguous
  float eps;             // used when eps_per_sample is null
  float std;             // of the normal start
  float lower, upper;    // pixel bounds, -inf and +inf when the start is not clamped
  bool normal;
};

// loss_row = weight * (kl_weight * KL + clean_weight * (CE of clean with labels, KL of clean
// without))
struct KdLossParams {
  const void* student;                     // [B, C] logits on the adversarial image
  const void* teacher;                     // [B, C] logits on the clean image
  const void* clean;                       // [B, C] student logits on the clean image, or null
  const int64_t* labels;                   // [B], or null
  const float* weight;                     // [B], or null for 1
  const float* teacher_temperature;        // [B], or null
  const float* clean_teacher_temperature;  // [B], or null; of the teacher in the KL of clean
  float* loss_rows;                        // [B]
  void* grad_student;                      // [B, C] contiguous, or null
  void* grad_clean;                        // [B, C] contiguous, or null
  void* grad_teacher;                      // [B, C] contiguous, or null; not with a KL of clean
  float* grad_scale;  // [B], the power of two that each row of grad_student and
                      // grad_teacher was multiplied by, or null for none
  int64_t batch;
  int64_t classes;
  int64_t student_stride, teacher_stride, clean_stride;          // elements between rows
  float inv_temperature;                                         // of the student
  float inv_teacher_temperature, inv_clean_teacher_temperature;  // used when those above are null
  float kl_weight, clean_weight;
  // grad_student = weight * kl_grad_weight * (p_student - p_teacher); also the weight of
  // grad_teacher, which has the factor T_student / T_teacher besides
  float kl_grad_weight;
  float clean_grad_weight;  // grad_clean = weight * clean_grad_weight * (p_clean - target)
};

struct ApgdParams {
  float* x_adv;                 // [B, E] the iterate just evaluated; overwritten on a restart
  float* x_prev;                // [B, E] the iterate before it; the next one is written here
  float* x_best;                // [B, E] highest loss
  void* grad_best;              // [B, E] gradient there
  float* x_fooled;              // [B, E] last misclassified iterate, or the start
  const float* state;           // [7, B], see ApgdRecord
  float* state_out;             // [7, B]
  const void* grad;             // [B, E] float, f16 or bf16, or null: no step
  const float* x;               // [B, E]
  const float* loss_rows;       // [B]
  const bool* correct;          // [B]
  const float* eps_per_sample;  // [B] or null
  int64_t batch;
  int64_t sample_numel;      // E
  float eps;                 // used when eps_per_sample is null
  float most_increases;      // at a checkpoint: halve the step if no more steps raised the loss
  float momentum;            // weight of the gradient step
  float one_minus_momentum;  // weight of the move before
  float lower, upper;        // pixel bounds
  bool first;                // this is the start: nothing is remembered yet
  bool checkpoint;
};

}  // namespace ard
