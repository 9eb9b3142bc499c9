// Launch geometry of the Auto-PGD step, shared by the launchers and the host emulator.
#pragma once

#include "cuda/norm_plan.h"

namespace ard::cuda {

struct ApgdLinfPlan {
  bool vector;  // 16-byte loads
  int64_t blocks_per_sample;
  int64_t blocks;
};

struct ApgdL2Plan {
  bool vector;
  SamplePlan sample;
};

// Every tensor of pixels or gradients on a 16-byte boundary, at every sample.
inline bool apgd_aligned(const ApgdParams& p, int64_t vec) {
  return p.sample_numel % vec == 0 && aligned16(p.x_adv) && aligned16(p.x_prev) &&
         aligned16(p.x_best) && aligned16(p.grad_best) && aligned16(p.x_fooled) &&
         aligned16(p.grad) && aligned16(p.x);
}

// grad_size: bytes of one gradient element; without a gradient, of one pixel.
inline ApgdLinfPlan plan_apgd_linf_step(const ApgdParams& p, int64_t grad_size, int threads) {
  constexpr int64_t kMostVectors = 4;      // of a thread
  constexpr int64_t kEnoughBlocks = 2048;  // to fill any GPU several times over
  ApgdLinfPlan plan{};
  plan.vector = apgd_aligned(p, 16 / grad_size);
  const int64_t vectors = p.sample_numel / (plan.vector ? 16 / grad_size : 1);
  const int64_t one_each = ceil_div(vectors, threads);
  const int64_t fewest = ceil_div(vectors, threads * kMostVectors);
  const int64_t wanted = p.batch ? ceil_div(kEnoughBlocks, p.batch) : 1;
  // Every block reads the sample's record and decides, so blocks are few where they are enough.
  const int64_t blocks = wanted < fewest ? fewest : wanted < one_each ? wanted : one_each;
  plan.blocks_per_sample = blocks ? blocks : 1;  // an empty sample has its record still
  plan.blocks = p.batch * plan.blocks_per_sample;
  return plan;
}

// What is staged is what the L2 step of norm_plan.h stages.
inline ApgdL2Plan plan_apgd_l2_step(const ApgdParams& p, int64_t grad_size,
                                    const SampleDevice& device) {
  ApgdL2Plan plan{};
  plan.vector = apgd_aligned(p, 16 / grad_size);
  const int64_t width = plan.vector ? 16 / grad_size : 1;
  plan.sample = plan_samples(device, p.batch, p.sample_numel / width, [=](int64_t vectors) {
    return staged_l2_bytes(vectors * width, grad_size);
  });
  return plan;
}

}  // namespace ard::cuda
