// The L-infinity step of Auto-PGD: one pass over what a sample reads and writes. Every block of a
// sample decides alike, from the record that none of them writes, so blocks need no order.
#pragma once

#include "core/params.h"
#include "cuda/apgd_select.cuh"

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

}  // namespace ard::cuda
