// Launch geometry of the Auto-PGD step, shared by the launcher and the host emulator.
#pragma once

#include "cuda/launch_plan.h"

namespace ard::cuda {

struct ApgdLinfPlan {
  bool vector;
  int64_t blocks_per_sample;
  int64_t blocks;
};

// Every tensor of pixels or gradients on a 16-byte boundary, at every sample.
inline bool apgd_aligned(const ApgdParams& p, int vec) {
  return p.sample_numel % vec == 0 && aligned16(p.x_adv) && aligned16(p.x_prev) &&
         aligned16(p.x_best) && aligned16(p.grad_best) && aligned16(p.x_fooled) &&
         aligned16(p.grad) && aligned16(p.x);
}

// grad_size: bytes of one gradient element.
inline ApgdLinfPlan plan_apgd_linf_step(const ApgdParams& p, int grad_size, int threads) {
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

}  // namespace ard::cuda
