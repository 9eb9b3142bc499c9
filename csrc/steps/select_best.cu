#include "common/launch.h"
#include "common/vectors.cuh"
#include "steps/select_best.h"

namespace ard::cuda {

constexpr int kSelectThreads = 256;

// Several blocks a sample; all of them read its losses, so the new one goes elsewhere.
template <int kVec>
__global__ void __launch_bounds__(kSelectThreads)
    select_best_kernel(SelectParams p, int64_t blocks_per_sample) {
  const int64_t sample = int64_t(blockIdx.x) / blocks_per_sample;
  const int64_t block = int64_t(blockIdx.x) % blocks_per_sample;
  const float loss = p.loss[sample], best_loss = p.best_loss[sample];
  const bool wins = loss_wins(loss, best_loss, p.lower);
  if (block == 0 && threadIdx.x == 0) p.best_loss_out[sample] = wins ? loss : best_loss;
  if (!wins) return;
  const int64_t at = sample * p.sample_numel, stride = blocks_per_sample * kSelectThreads * kVec;
  for (int64_t i = (block * kSelectThreads + threadIdx.x) * kVec; i < p.sample_numel; i += stride) {
    store_vec<kVec>(p.best + at + i, load_vec<kVec>(p.candidate + at + i));
  }
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

void launch_select_best(const SelectParams& p, Stream stream) {
  if (p.batch == 0) return;
  const SelectPlan plan = plan_select_best(p, kSelectThreads);
  for_bool(plan.vector, [&](auto vector) {
    start<select_best_kernel<vector.value ? 4 : 1>>(
        {p.batch * plan.blocks_per_sample, kSelectThreads}, stream, p, plan.blocks_per_sample);
  });
}

}  // namespace ard::cuda
