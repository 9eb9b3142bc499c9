// The L-infinity step of Auto-PGD: one pass over what a sample reads and writes. Every block of a
// sample decides alike, from the record that none of them writes, so blocks need no order.
#pragma once

#include "core/apgd_math.h"
#include "core/half.h"
#include "cuda/vec.cuh"

namespace ard::cuda {

constexpr int kApgdThreads = 256;

// kVec elements of the gradient are 16 bytes, or one element where tensors are not aligned.
template <typename GradT, int kVec>
__global__ void __launch_bounds__(kApgdThreads)
    apgd_linf_step_kernel(ApgdParams p, unsigned blocks_per_sample) {
  constexpr int kPixels = kVec < 4 ? kVec : 4;  // pixels move in 16-byte vectors too
  constexpr int kQuads = kVec / kPixels;
  const int64_t sample = blockIdx.x / blocks_per_sample;
  const unsigned part = blockIdx.x % blocks_per_sample;
  const ApgdDecision d = apgd_decide(p, sample);
  if (part == 0 && threadIdx.x == 0) apgd_store(p.state_out, p.batch, sample, d.record);
  if (!p.grad && !d.improved && !d.keep_fooled) return;

  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const GradT* grads = static_cast<const GradT*>(d.from_best ? p.grad_best : p.grad);
  const int64_t begin = sample * p.sample_numel, end = begin + p.sample_numel;
  const int64_t stride = int64_t(blocks_per_sample) * kApgdThreads * kVec;
  for (int64_t i = begin + (int64_t(part) * kApgdThreads + threadIdx.x) * kVec; i < end;
       i += stride) {
    Vec<float, kPixels> current[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) current[q] = load_vec<kPixels>(p.x_adv + i + kPixels * q);
    if (!p.grad) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (d.keep_fooled) store_vec<kPixels>(p.x_fooled + i + kPixels * q, current[q]);
        if (d.improved) store_vec<kPixels>(p.x_best + i + kPixels * q, current[q]);
      }
      continue;
    }
    // All loads before the first store: the compiler cannot know that they do not meet.
    const Vec<GradT, kVec> grad = load_vec<kVec>(grads + i);
    Vec<float, kPixels> x[kQuads], previous[kQuads], from[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int64_t at = i + kPixels * q;
      x[q] = load_vec<kPixels>(p.x + at);
      from[q] = d.from_best ? load_vec<kPixels>(p.x_best + at) : current[q];
      previous[q] = p.first ? current[q] : load_vec<kPixels>(p.x_prev + at);
    }
    if (d.improved) store_vec<kVec>(static_cast<GradT*>(p.grad_best) + i, grad);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int64_t at = i + kPixels * q;
      if (d.keep_fooled) store_vec<kPixels>(p.x_fooled + at, current[q]);
      if (d.improved) store_vec<kPixels>(p.x_best + at, current[q]);
      if (d.from_best) store_vec<kPixels>(p.x_adv + at, from[q]);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        previous[q].v[j] = apgd_linf_update(from[q].v[j], to_float(grad.v[kPixels * q + j]),
                                            x[q].v[j], previous[q].v[j], d.record.step_size, eps,
                                            p.momentum, p.one_minus_momentum, p.lower, p.upper);
      }
      store_vec<kPixels>(p.x_prev + at, previous[q]);
    }
  }
}

}  // namespace ard::cuda
