#include "apgd/apgd.h"

#include "common/divisor.h"
#include "common/launch.h"
#include "common/sample_group.cuh"
#include "common/vectors.cuh"

namespace ard::cuda {

// Every tensor of pixels or gradients on a 16-byte boundary, at every sample.
inline bool apgd_aligned(const ApgdParams& p, int64_t vec) {
  return p.sample_numel % vec == 0 && aligned16(p.x_adv) && aligned16(p.x_prev) &&
         aligned16(p.x_best) && aligned16(p.grad_best) && aligned16(p.x_fooled) &&
         aligned16(p.grad) && aligned16(p.x);
}

// kVec pixels as they are in memory, all of which a step needs whatever it decides.
template <typename T, int kVec>
struct ApgdLoaded {
  Pixels<kVec> evaluated, x, previous;
  Vec<T, kVec> grad;
};

// At element i of the batch; kPrevious: the iterate before as well.
template <typename T, int kVec, bool kPrevious>
__device__ __forceinline__ ApgdLoaded<T, kVec> apgd_loaded(const ApgdParams& p, int64_t i) {
  ApgdLoaded<T, kVec> out;
  out.evaluated = load_pixels<kVec>(p.x_adv + i);
  out.x = load_pixels<kVec>(p.x + i);
  out.grad = load_vec<kVec>(static_cast<const T*>(p.grad) + i);
  if (kPrevious && !p.first) out.previous = load_pixels<kVec>(p.x_prev + i);
  return out;
}

// Does what the decision says, after which `evaluated` is where the step starts, and `grad` the
// gradient there.
template <typename T, int kVec>
__device__ __forceinline__ void apgd_select(const ApgdParams& p, const ApgdDecision& d, int64_t i,
                                            ApgdLoaded<T, kVec>& at) {
  if (d.keep_fooled) store_pixels_global<kVec>(p.x_fooled + i, at.evaluated);
  if (d.improved) {
    store_pixels_global<kVec>(p.x_best + i, at.evaluated);
    store_global<kVec>(static_cast<T*>(p.grad_best) + i, at.grad);
  }
  if (d.from_best) {
    at.evaluated = load_pixels<kVec>(p.x_best + i);
    at.grad = load_vec<kVec>(static_cast<const T*>(p.grad_best) + i);
    store_pixels_global<kVec>(p.x_adv + i, at.evaluated);
  }
}

// The L-infinity step of Auto-PGD: one pass over what a sample reads and writes. Every block of a
// sample decides alike, from the record that none of them writes, so blocks need no order.

constexpr int kApgdThreads = 256;

// The elements of a sample that a thread takes, and whether it is the first of them all.
struct ApgdPart {
  int64_t sample, first, end, stride;
  bool leads;
};

template <int kVec>
__device__ __forceinline__ ApgdPart apgd_part(const ApgdParams& p, const Divisor& blocks) {
  const Divided block = divided(blockIdx.x, blocks);
  const int64_t sample = block.quotient, begin = sample * p.sample_numel;
  const uint32_t thread = block.remainder * kApgdThreads + threadIdx.x;
  return ApgdPart{sample, begin + int64_t(thread) * kVec, begin + p.sample_numel,
                  int64_t(blocks.number * kApgdThreads) * kVec, thread == 0};
}

// kVec elements of the gradient are 16 bytes, or one element where tensors are not aligned.
template <typename T, int kVec>
__global__ void __launch_bounds__(kApgdThreads)
    apgd_linf_step_kernel(ApgdParams p, Divisor blocks_per_sample) {
  const ApgdPart part = apgd_part<kVec>(p, blocks_per_sample);
  int64_t i = part.first;
  ApgdLoaded<T, kVec> at;
  if (i < part.end) at = apgd_loaded<T, kVec, true>(p, i);  // while the decision is made
  const ApgdDecision d = apgd_decide(p, part.sample);
  if (part.leads) apgd_store(p.state_out, p.batch, part.sample, d.record);
  const float eps = p.eps_per_sample ? p.eps_per_sample[part.sample] : p.eps;
  const float step_size = apgd_step_size(p, d);
  while (i < part.end) {
    apgd_select(p, d, i, at);
    const Floats<kVec> grad = to_floats(at.grad);
    Pixels<kVec> next;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float current = at.evaluated[j];
      next[j] =
          apgd_linf_update(current, grad[j], at.x[j], p.first ? current : at.previous[j], step_size,
                           eps, p.momentum, p.one_minus_momentum, p.lower, p.upper);
    }
    to_levels(next, p.levels);
    store_pixels_global<kVec>(p.x_prev + i, next);
    i += part.stride;
    if (i < part.end) at = apgd_loaded<T, kVec, true>(p, i);
  }
}

// After the last step, without a gradient: the selection alone.
template <int kVec>
__global__ void __launch_bounds__(kApgdThreads)
    apgd_finish_kernel(ApgdParams p, Divisor blocks_per_sample) {
  const ApgdPart part = apgd_part<kVec>(p, blocks_per_sample);
  const ApgdDecision d = apgd_decide(p, part.sample);
  if (part.leads) apgd_store(p.state_out, p.batch, part.sample, d.record);
  if (!d.improved && !d.keep_fooled) return;
  for (int64_t i = part.first; i < part.end; i += part.stride) {
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
                                            divisor(plan.blocks_per_sample));
    });
  });
}

void launch_apgd_finish(const ApgdParams& p, Stream stream) {
  if (p.batch == 0) return;
  const ApgdLinfPlan plan = plan_apgd_linf_step(p, sizeof(float), kApgdThreads);
  for_bool(plan.vector, [&](auto vector) {
    start<apgd_finish_kernel<vector.value ? 4 : 1>>({plan.blocks, kApgdThreads}, stream, p,
                                                    divisor(plan.blocks_per_sample));
  });
}

// The L2 step of Auto-PGD by all threads that own a sample: the selection and the sums of the
// gradient step; the momentum and the norm that it leads to; the projection.

// kCached: gradient, point and image are read from memory once and kept in shared memory; otherwise
// x_prev holds the perturbation between the last two passes.
template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(kSampleThreads)
    apgd_l2_step_kernel(ApgdParams p, int64_t share_vectors) {
  ARD_DYNAMIC_SHARED(unsigned char, shared);
  SampleGroup group(*reinterpret_cast<SampleScratch*>(shared));
  const int64_t sample = group.sample(), at = sample * p.sample_numel;
  const SampleShare share = group.share(p.sample_numel / kVec, share_vectors);
  int64_t v = share.begin + threadIdx.x;
  ApgdLoaded<T, kVec> loaded;
  if (v < share.end) loaded = apgd_loaded<T, kVec, false>(p, at + v * kVec);
  const ApgdDecision d = apgd_decide(p, sample);
  if (group.leads()) apgd_store(p.state_out, p.batch, sample, d.record);
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const int64_t room = share_vectors * kVec;
  T* staged_grad = reinterpret_cast<T*>(shared + sizeof(SampleScratch));
  float* staged_point = reinterpret_cast<float*>(shared + sizeof(SampleScratch) +
                                                 padded16(room * int64_t(sizeof(T))));
  float* staged_x = staged_point + padded16(room * 4) / 4;

  double sums[3] = {0.0, 0.0, 0.0};
  while (v < share.end) {
    const int64_t slot = (v - share.begin) * kVec;
    apgd_select(p, d, at + v * kVec, loaded);
    if constexpr (kCached) {
      store_vec<kVec>(staged_grad + slot, loaded.grad);
      store_pixels<kVec>(staged_point + slot, loaded.evaluated);
      store_pixels<kVec>(staged_x + slot, loaded.x);
    }
    const Floats<kVec> grad = to_floats(loaded.grad);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      l2_add(loaded.evaluated[j], grad[j], loaded.x[j], sums[0], sums[1], sums[2]);
    }
    v += blockDim.x;
    if (v < share.end) loaded = apgd_loaded<T, kVec, false>(p, at + v * kVec);
  }
  const L2Step by = group.reduce(sums, [&](const double (&of)[3]) {
    return l2_step(L2Sums{of[0], of[1], of[2]}, d.record.step_size, eps);
  });

  const T* grads = static_cast<const T*>(d.from_best ? p.grad_best : p.grad) + at;
  double square[1] = {0.0};
  for (v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec, slot = (v - share.begin) * kVec;
    const Floats<kVec> grad = to_floats(load_vec<kVec>(kCached ? staged_grad + slot : grads + i));
    Pixels<kVec> point = load_pixels<kVec>(kCached ? staged_point + slot : p.x_adv + at + i);
    const Pixels<kVec> x = load_pixels<kVec>(kCached ? staged_x + slot : p.x + at + i);
    Pixels<kVec> previous;
    if (!p.first) previous = load_pixels<kVec>(p.x_prev + at + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float current = point[j];
      point[j] = apgd_l2_delta(current, grad[j], x[j], p.first ? current : previous[j], by,
                               p.momentum, p.one_minus_momentum, p.lower, p.upper);
      square[0] += double(point[j]) * double(point[j]);
    }
    store_pixels<kVec>(kCached ? staged_point + slot : p.x_prev + at + i, point);
  }
  const float shrink =
      group.reduce(square, [&](const double (&of)[1]) { return l2_shrink(sqrt_f64(of[0]), eps); });

  for (v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec, slot = (v - share.begin) * kVec;
    Pixels<kVec> point = load_pixels<kVec>(kCached ? staged_point + slot : p.x_prev + at + i);
    const Pixels<kVec> x = load_pixels<kVec>(kCached ? staged_x + slot : p.x + at + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      point[j] = apgd_l2_finish(point[j], x[j], shrink, p.lower, p.upper);
    }
    store_pixels_global<kVec>(p.x_prev + at + i, point);
  }
}

struct ApgdL2Plan {
  bool vector;
  SamplePlan sample;
};

inline ApgdL2Plan plan_apgd_l2_step(const ApgdParams& p, int64_t grad_size,
                                    const DeviceLimits& device) {
  ApgdL2Plan plan{};
  plan.vector = apgd_aligned(p, 16 / grad_size);
  const int64_t width = plan.vector ? 16 / grad_size : 1;
  plan.sample = plan_samples(device, p.batch, p.sample_numel / width, [=](int64_t vectors) {
    return staged_l2_bytes(vectors * width, grad_size);
  });
  return plan;
}

void launch_apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, Stream stream) {
  if (p.batch == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const DeviceLimits device = device_limits<apgd_l2_step_kernel<T, 16 / sizeof(T), true>>();
    const ApgdL2Plan plan = plan_apgd_l2_step(p, sizeof(T), device);
    for_bools(plan.vector, plan.sample.cached, [&](auto vector, auto cached) {
      constexpr int kVec = vector.value ? 16 / sizeof(T) : 1;
      start<apgd_l2_step_kernel<T, kVec, cached.value>>(geometry_of(plan.sample), stream, p,
                                                        plan.sample.share);
    });
  });
}

}  // namespace ard::cuda
