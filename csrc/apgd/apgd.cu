#include "apgd/apgd.h"

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

// Where the step starts, and the gradient there.
template <typename T, int kVec>
struct ApgdPoint {
  Pixels<kVec> current;
  Vec<T, kVec> grad;
};

// Does what the decision says for kVec pixels at element i of the batch.
template <typename T, int kVec>
__device__ __forceinline__ ApgdPoint<T, kVec> apgd_select(const ApgdParams& p,
                                                          const ApgdDecision& d, int64_t i) {
  const T* grads = static_cast<const T*>(d.from_best ? p.grad_best : p.grad);
  const Pixels<kVec> evaluated = load_pixels<kVec>(p.x_adv + i);
  ApgdPoint<T, kVec> out;
  out.grad = load_vec<kVec>(grads + i);
  out.current = d.from_best ? load_pixels<kVec>(p.x_best + i) : evaluated;
  if (d.keep_fooled) store_pixels_global<kVec>(p.x_fooled + i, evaluated);
  if (d.improved) {
    store_pixels_global<kVec>(p.x_best + i, evaluated);
    store_global<kVec>(static_cast<T*>(p.grad_best) + i, out.grad);
  }
  if (d.from_best) store_pixels_global<kVec>(p.x_adv + i, out.current);
  return out;
}

// The L-infinity step of Auto-PGD: one pass over what a sample reads and writes. Every block of a
// sample decides alike, from the record that none of them writes, so blocks need no order.

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
  const float step_size = apgd_step_size(p, d);
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
      previous[j] =
          apgd_linf_update(current, to_float(from.grad.v[j]), x[j], p.first ? current : previous[j],
                           step_size, eps, p.momentum, p.one_minus_momentum, p.lower, p.upper);
    }
    to_levels(previous, p.levels);
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

// The L2 step of Auto-PGD by all threads that own a sample: the selection and the sums of the
// gradient step; the momentum and the norm that it leads to; the projection.

// kCached: gradient, point and image are read from memory once and kept in shared memory; otherwise
// x_prev holds the perturbation between the last two passes.
template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(1024) apgd_l2_step_kernel(ApgdParams p) {
  ARD_DYNAMIC_SHARED(unsigned char, shared);
  SampleGroup group(*reinterpret_cast<SampleScratch*>(shared));
  const int64_t sample = group.sample(), at = sample * p.sample_numel;
  const ApgdDecision d = apgd_decide(p, sample);
  if (group.leads()) apgd_store(p.state_out, p.batch, sample, d.record);
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const T* grads = static_cast<const T*>(d.from_best ? p.grad_best : p.grad) + at;
  const SampleShare share = group.share(p.sample_numel / kVec);
  const int64_t room = share_size(p.sample_numel / kVec, int64_t(cluster_blocks())) * kVec;
  T* staged_grad = reinterpret_cast<T*>(shared + sizeof(SampleScratch));
  float* staged_point = reinterpret_cast<float*>(shared + sizeof(SampleScratch) +
                                                 padded16(room * int64_t(sizeof(T))));
  float* staged_x = staged_point + padded16(room * 4) / 4;

  double sums[3] = {0.0, 0.0, 0.0};
  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = at + v * kVec, slot = (v - share.begin) * kVec;
    const Pixels<kVec> x = load_pixels<kVec>(p.x + i);
    const ApgdPoint<T, kVec> from = apgd_select<T, kVec>(p, d, i);
    if constexpr (kCached) {
      store_vec<kVec>(staged_grad + slot, from.grad);
      store_pixels<kVec>(staged_point + slot, from.current);
      store_pixels<kVec>(staged_x + slot, x);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      l2_add(from.current[j], to_float(from.grad.v[j]), x[j], sums[0], sums[1], sums[2]);
    }
  }
  group.sum(sums);
  const L2Step by = l2_step(L2Sums{sums[0], sums[1], sums[2]}, d.record.step_size, eps);

  double square[1] = {0.0};
  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
    const int64_t i = v * kVec, slot = (v - share.begin) * kVec;
    const Vec<T, kVec> grad = load_vec<kVec>(kCached ? staged_grad + slot : grads + i);
    Pixels<kVec> point = load_pixels<kVec>(kCached ? staged_point + slot : p.x_adv + at + i);
    const Pixels<kVec> x = load_pixels<kVec>(kCached ? staged_x + slot : p.x + at + i);
    Pixels<kVec> previous;
    if (!p.first) previous = load_pixels<kVec>(p.x_prev + at + i);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      const float current = point[j];
      point[j] = apgd_l2_delta(current, to_float(grad.v[j]), x[j], p.first ? current : previous[j],
                               by, p.momentum, p.one_minus_momentum, p.lower, p.upper);
      square[0] += double(point[j]) * double(point[j]);
    }
    store_pixels<kVec>(kCached ? staged_point + slot : p.x_prev + at + i, point);
  }
  group.sum(square);
  const float shrink = l2_shrink(sqrt_f64(square[0]), eps);

  for (int64_t v = share.begin + threadIdx.x; v < share.end; v += blockDim.x) {
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
      start<apgd_l2_step_kernel<T, kVec, cached.value>>(geometry_of(plan.sample), stream, p);
    });
  });
}

}  // namespace ard::cuda
