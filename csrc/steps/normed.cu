// The L2 step and the MI-FGSM step, which need a sum over a sample before they can write any of it.
#include "common/sample_group.cuh"
#include "common/vectors.cuh"
#include "steps/normed.h"
#include "steps/pgd_linf.h"

namespace ard::cuda {

// kCached: gradient, iterate and image are read from memory once and kept in shared memory.
template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(kSampleThreads)
    pgd_l2_step_kernel(NormStepParams p, int64_t share_vectors) {
  ARD_DYNAMIC_SHARED(unsigned char, shared);
  SampleGroup group(*reinterpret_cast<SampleScratch*>(shared));
  const int64_t sample = group.sample(), at = sample * p.sample_numel;
  const T* grad = static_cast<const T*>(p.grad) + at;
  float* x_adv = p.x_adv + at;
  const float* x = p.x + at;
  const SampleShare share = group.share(p.sample_numel / kVec, share_vectors);
  const int64_t room = share_vectors * kVec;
  T* staged_grad = reinterpret_cast<T*>(shared + sizeof(SampleScratch));
  float* staged_adv = reinterpret_cast<float*>(shared + sizeof(SampleScratch) +
                                               padded16(room * int64_t(sizeof(T))));
  float* staged_x = staged_adv + padded16(room * 4) / 4;
  const float step = p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size;
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;

  double sums[3] = {0.0, 0.0, 0.0};
  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec, slot = (v - share.begin) * kVec;
    const Vec<T, kVec> g = load_vec<kVec>(grad + i);
    const Pixels<kVec> a = load_pixels<kVec>(x_adv + i), c = load_pixels<kVec>(x + i);
    if constexpr (kCached) {
      store_vec<kVec>(staged_grad + slot, g);
      store_pixels<kVec>(staged_adv + slot, a);
      store_pixels<kVec>(staged_x + slot, c);
    }
    const Floats<kVec> gradient = to_floats(g);
#pragma unroll
    for (int j = 0; j < kVec; ++j) l2_add(a[j], gradient[j], c[j], sums[0], sums[1], sums[2]);
  }
  const L2Step by = group.reduce(sums, [&](const double (&of)[3]) {
    return l2_step(L2Sums{of[0], of[1], of[2]}, p.direction * step, eps);
  });

  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec, slot = (v - share.begin) * kVec;
    const Floats<kVec> g = to_floats(load_vec<kVec>(kCached ? staged_grad + slot : grad + i));
    Pixels<kVec> a = load_pixels<kVec>(kCached ? staged_adv + slot : x_adv + i);
    const Pixels<kVec> c = load_pixels<kVec>(kCached ? staged_x + slot : x + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) a[j] = l2_update(a[j], g[j], c[j], by, p.lower, p.upper);
    store_pixels<kVec>(x_adv + i, a);
  }
}

// kCached: the gradient is read from memory once; everything else is needed only once anyway.
template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(kSampleThreads)
    mifgsm_step_kernel(NormStepParams p, int64_t share_vectors) {
  ARD_DYNAMIC_SHARED(unsigned char, shared);
  SampleGroup group(*reinterpret_cast<SampleScratch*>(shared));
  const int64_t sample = group.sample(), at = sample * p.sample_numel;
  const T* grad = static_cast<const T*>(p.grad) + at;
  const SampleShare share = group.share(p.sample_numel / kVec, share_vectors);
  T* staged_grad = reinterpret_cast<T*>(shared + sizeof(SampleScratch));
  const float step =
      p.direction * (p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size);
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;

  double norm[1] = {0.0};
#pragma unroll 2
  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const Vec<T, kVec> g = load_vec<kVec>(grad + v * kVec);
    if constexpr (kCached) store_vec<kVec>(staged_grad + (v - share.begin) * kVec, g);
    const Floats<kVec> gradient = to_floats(g);
#pragma unroll
    for (int j = 0; j < kVec; ++j) norm[0] += double(magnitude(finite_gradient(gradient[j])));
  }
  const NormedStep by =
      group.reduce(norm, [](const double (&of)[1]) { return normed_step(of[0], 1.0); });

  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec;
    const Floats<kVec> g =
        to_floats(load_vec<kVec>(kCached ? staged_grad + (v - share.begin) * kVec : grad + i));
    Pixels<kVec> a = load_pixels<kVec>(p.x_adv + at + i), c = load_pixels<kVec>(p.x + at + i);
    Pixels<kVec> m = load_pixels<kVec>(p.momentum + at + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      m[j] = mifgsm_momentum(m[j], g[j], p.decay, by);
      a[j] = pgd_linf_update(a[j], m[j], c[j], step, eps, p.lower, p.upper);
    }
    to_levels(a, p.levels);
    store_pixels<kVec>(p.momentum + at + i, m);
    store_pixels<kVec>(p.x_adv + at + i, a);
  }
}

struct NormStepPlan {
  bool vector;  // 16-byte loads
  SamplePlan sample;
};

// grad_size: bytes of one gradient element.
inline NormStepPlan plan_norm_step(const NormStepParams& p, int64_t grad_size, bool mifgsm,
                                   const DeviceLimits& device) {
  const int64_t vec = 16 / grad_size;
  NormStepPlan plan{};
  plan.vector = p.sample_numel % vec == 0 && aligned16(p.x_adv) && aligned16(p.grad) &&
                aligned16(p.x) && (!mifgsm || aligned16(p.momentum));
  const int64_t width = plan.vector ? vec : 1;
  plan.sample = plan_samples(device, p.batch, p.sample_numel / width, [=](int64_t vectors) {
    // MI-FGSM reads nothing but the gradient twice.
    return mifgsm ? padded16(vectors * width * grad_size)
                  : staged_l2_bytes(vectors * width, grad_size);
  });
  return plan;
}

void launch_pgd_l2_step(const NormStepParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const DeviceLimits device = device_limits<pgd_l2_step_kernel<T, 16 / sizeof(T), true>>();
    const NormStepPlan plan = plan_norm_step(p, sizeof(T), false, device);
    for_bools(plan.vector, plan.sample.cached, [&](auto vector, auto cached) {
      constexpr int kVec = vector.value ? 16 / sizeof(T) : 1;
      start<pgd_l2_step_kernel<T, kVec, cached.value>>(geometry_of(plan.sample), stream, p,
                                                       plan.sample.share);
    });
  });
}

void launch_mifgsm_step(const NormStepParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const DeviceLimits device = device_limits<mifgsm_step_kernel<T, 16 / sizeof(T), true>>();
    const NormStepPlan plan = plan_norm_step(p, sizeof(T), true, device);
    for_bools(plan.vector, plan.sample.cached, [&](auto vector, auto cached) {
      constexpr int kVec = vector.value ? 16 / sizeof(T) : 1;
      start<mifgsm_step_kernel<T, kVec, cached.value>>(geometry_of(plan.sample), stream, p,
                                                       plan.sample.share);
    });
  });
}

}  // namespace ard::cuda
