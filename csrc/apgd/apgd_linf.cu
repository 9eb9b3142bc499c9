// The L-infinity step of Auto-PGD: one pass over what a sample reads and writes. Every block of a
// sample decides alike, from the record that none of them writes, so blocks need no order.
#include "apgd/apgd.cuh"

namespace ard::cuda {

constexpr int kApgdThreads = 256;

// kVec elements of the gradient are 16 bytes, or one element where tensors are not aligned.
template <typename T, int kVec>
__global__ void __launch_bounds__(kApgdThreads)
    apgd_linf_step_kernel(ApgdParams p, unsigned blocks_per_sample) {
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const unsigned part = blockIdx.x % blocks_per_sample;
  const ApgdDecision d = apgd_decide(p, sample);
  if (part == 0 && threadIdx.x == 0) apgd_store(p.state_out, p.batch, sample, d.record);
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const int64_t begin = sample * p.sample_numel, end = begin + p.sample_numel;
  const int64_t first = begin + (int64_t(part) * kApgdThreads + threadIdx.x) * kVec;
  const int64_t stride = int64_t(blocks_per_sample) * kApgdThreads * kVec;
  for (int64_t i = first; i < end; i += stride) {
    // Loads before the first store: the compiler cannot know that they do not meet.
    const Pixels<kVec> x = load_pixels<kVec>(p.x + i);
    Pixels<kVec> previous;
    if (!p.first) previous = load_pixels<kVec>(p.x_prev + i);
    const ApgdPoint<T, kVec> from = apgd_select<T, kVec>(p, d, i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float current = from.current[j];
      previous[j] = apgd_linf_update(current, to_float(from.grad.v[j]), x[j],
                                     p.first ? current : previous[j], d.record.step_size, eps,
                                     p.momentum, p.one_minus_momentum, p.lower, p.upper);
    }
    store_pixels_global<kVec>(p.x_prev + i, previous);
  }
}

// After the last step, without a gradient: the selection alone.
template <int kVec>
__global__ void __launch_bounds__(kApgdThreads)
    apgd_finish_kernel(ApgdParams p, unsigned blocks_per_sample) {
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const unsigned part = blockIdx.x % blocks_per_sample;
  const ApgdDecision d = apgd_decide(p, sample);
  if (part == 0 && threadIdx.x == 0) apgd_store(p.state_out, p.batch, sample, d.record);
  if (!d.improved && !d.keep_fooled) return;
  const int64_t begin = sample * p.sample_numel, end = begin + p.sample_numel;
  const int64_t first = begin + (int64_t(part) * kApgdThreads + threadIdx.x) * kVec;
  const int64_t stride = int64_t(blocks_per_sample) * kApgdThreads * kVec;
  for (int64_t i = first; i < end; i += stride) {
    const Pixels<kVec> evaluated = load_pixels<kVec>(p.x_adv + i);
    if (d.keep_fooled) store_pixels_global<kVec>(p.x_fooled + i, evaluated);
    if (d.improved) store_pixels_global<kVec>(p.x_best + i, evaluated);
  }
}

struct ApgdLinfPlan {
  bool vector;  // 16-byte loads
  int64_t blocks_per_sample;
  int64_t blocks;
};

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

void launch_apgd_linf_step(const ApgdParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const ApgdLinfPlan plan = plan_apgd_linf_step(p, sizeof(T), kApgdThreads);
    for_bool(plan.vector, [&](auto vector) {
      constexpr int kVec = vector.value ? 16 / sizeof(T) : 1;
      start<apgd_linf_step_kernel<T, kVec>>({plan.blocks, kApgdThreads}, stream, p,
                                            unsigned(plan.blocks_per_sample));
    });
  });
}

void launch_apgd_finish(const ApgdParams& p, Stream stream) {
  if (p.batch == 0) return;
  const ApgdLinfPlan plan = plan_apgd_linf_step(p, sizeof(float), kApgdThreads);
  for_bool(plan.vector, [&](auto vector) {
    start<apgd_finish_kernel<vector.value ? 4 : 1>>({plan.blocks, kApgdThreads}, stream, p,
                                                    unsigned(plan.blocks_per_sample));
  });
}

}  // namespace ard::cuda
