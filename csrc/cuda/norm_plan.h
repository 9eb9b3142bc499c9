// Which variant of the kernels over whole samples runs on how many blocks.
#pragma once

#include "core/norm_params.h"
#include "cuda/launch_plan.h"
#include "cuda/sample_plan.h"

namespace ard::cuda {

struct NormStepPlan {
  bool vector;  // 16-byte loads
  SamplePlan sample;
};

// Bytes that a share of `elements` takes when a step keeps it on chip: gradient, iterate and image
// for the L2 step, which needs all three twice; the gradient for MI-FGSM.
inline int64_t staged_l2_bytes(int64_t elements, int64_t grad_size) {
  return padded16(elements * grad_size) + 2 * padded16(elements * 4);
}

inline int64_t staged_mifgsm_bytes(int64_t elements, int64_t grad_size) {
  return padded16(elements * grad_size);
}

// grad_size: bytes of one gradient element.
inline NormStepPlan plan_norm_step(const NormStepParams& p, int64_t grad_size, bool mifgsm,
                                   const SampleDevice& device) {
  const int64_t vec = 16 / grad_size;
  NormStepPlan plan{};
  plan.vector = p.sample_numel % vec == 0 && aligned16(p.x_adv) && aligned16(p.grad) &&
                aligned16(p.x) && (!mifgsm || aligned16(p.momentum));
  const int64_t width = plan.vector ? vec : 1;
  plan.sample = plan_samples(device, p.batch, p.sample_numel / width, [=](int64_t vectors) {
    return mifgsm ? staged_mifgsm_bytes(vectors * width, grad_size)
                  : staged_l2_bytes(vectors * width, grad_size);
  });
  return plan;
}

struct SelectPlan {
  bool vector;
  int64_t blocks_per_sample;
};

inline SelectPlan plan_select_best(const SelectParams& p, int threads) {
  SelectPlan plan{};
  plan.vector = p.sample_numel % 4 == 0 && aligned16(p.best) && aligned16(p.candidate);
  // Four 16-byte vectors a thread; a sample without pixels still has a loss to write.
  const int64_t per_block = int64_t(threads) * 4 * (plan.vector ? 4 : 1);
  plan.blocks_per_sample = p.sample_numel ? ceil_div(p.sample_numel, per_block) : 1;
  return plan;
}

}  // namespace ard::cuda
