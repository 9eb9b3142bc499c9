// The L2 step and the MI-FGSM step, which need a sum over a sample before they can write any of it,
// and the selection of the best iterate.
#pragma once

#include "core/half.h"
#include "core/norm_math.h"
#include "core/norm_params.h"
#include "core/pgd_math.h"
#include "cuda/pixels.cuh"
#include "cuda/platform.cuh"
#include "cuda/sample_group.cuh"

namespace ard::cuda {

constexpr int kSelectThreads = 256;

// kCached: gradient, iterate and image are read from memory once and kept in shared memory.
template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(1024, 1) pgd_l2_step_kernel(NormStepParams p) {
  ARD_DYNAMIC_SHARED(unsigned char, shared);
  SampleGroup group(*reinterpret_cast<SampleScratch*>(shared));
  const int64_t sample = group.sample(), at = sample * p.sample_numel;
  const T* grad = static_cast<const T*>(p.grad) + at;
  float* x_adv = p.x_adv + at;
  const float* x = p.x + at;
  const SampleShare share = group.share(p.sample_numel / kVec);
  const int64_t room = share_size(p.sample_numel / kVec, int64_t(cluster_blocks())) * kVec;
  T* staged_grad = reinterpret_cast<T*>(shared + sizeof(SampleScratch));
  float* staged_adv = reinterpret_cast<float*>(shared + sizeof(SampleScratch) +
                                               padded16(room * int64_t(sizeof(T))));
  float* staged_x = staged_adv + padded16(room * 4) / 4;

  double sums[3] = {0.0, 0.0, 0.0};
  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec, slot = (v - share.begin) * kVec;
    const Vec<T, kVec> g = load_vec<kVec>(grad + i);
    Pixels<kVec> a = load_pixels<kVec>(x_adv + i), c = load_pixels<kVec>(x + i);
    if constexpr (kCached) {
      store_vec<kVec>(staged_grad + slot, g);
      store_pixels<kVec>(staged_adv + slot, a);
      store_pixels<kVec>(staged_x + slot, c);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      l2_add(a[j], to_float(g.v[j]), c[j], sums[0], sums[1], sums[2]);
    }
  }
  group.sum(sums);
  const float step = p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size;
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const L2Step by = l2_step(L2Sums{sums[0], sums[1], sums[2]}, p.direction * step, eps);

  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec, slot = (v - share.begin) * kVec;
    const Vec<T, kVec> g = load_vec<kVec>(kCached ? staged_grad + slot : grad + i);
    Pixels<kVec> a = load_pixels<kVec>(kCached ? staged_adv + slot : x_adv + i);
    Pixels<kVec> c = load_pixels<kVec>(kCached ? staged_x + slot : x + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      a[j] = l2_update(a[j], to_float(g.v[j]), c[j], by, p.lower, p.upper);
    }
    store_pixels<kVec>(x_adv + i, a);
  }
}

// kCached: the gradient is read from memory once; everything else is needed only once anyway.
template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(1024, 1) mifgsm_step_kernel(NormStepParams p) {
  ARD_DYNAMIC_SHARED(unsigned char, shared);
  SampleGroup group(*reinterpret_cast<SampleScratch*>(shared));
  const int64_t sample = group.sample(), at = sample * p.sample_numel;
  const T* grad = static_cast<const T*>(p.grad) + at;
  const SampleShare share = group.share(p.sample_numel / kVec);
  T* staged_grad = reinterpret_cast<T*>(shared + sizeof(SampleScratch));

  double norm[1] = {0.0};
  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const Vec<T, kVec> g = load_vec<kVec>(grad + v * kVec);
    if constexpr (kCached) store_vec<kVec>(staged_grad + (v - share.begin) * kVec, g);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      norm[0] += double(magnitude(finite_gradient(to_float(g.v[j]))));
    }
  }
  group.sum(norm);
  const NormedStep by = normed_step(norm[0], 1.0);
  const float step =
      p.direction * (p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size);
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;

  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec;
    const Vec<T, kVec> g =
        load_vec<kVec>(kCached ? staged_grad + (v - share.begin) * kVec : grad + i);
    Pixels<kVec> a = load_pixels<kVec>(p.x_adv + at + i), c = load_pixels<kVec>(p.x + at + i);
    Pixels<kVec> m = load_pixels<kVec>(p.momentum + at + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      m[j] = mifgsm_momentum(m[j], to_float(g.v[j]), p.decay, by);
      a[j] = pgd_linf_update(a[j], m[j], c[j], step, eps, p.lower, p.upper);
    }
    store_pixels<kVec>(p.momentum + at + i, m);
    store_pixels<kVec>(p.x_adv + at + i, a);
  }
}

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

}  // namespace ard::cuda
