// One pass, no shared memory, no communication.
#include "common/divisor.h"
#include "common/launch.h"
#include "common/vectors.cuh"
#include "steps/pgd_linf.h"

namespace ard::cuda {

constexpr int kPgdThreads = 256;

template <typename GradT>
__device__ __forceinline__ void pgd_linf_step_one(const PgdLinfParams& p, int64_t i) {
  const bool per_sample = p.step_size_per_sample || p.eps_per_sample;
  const int64_t sample = per_sample ? i / p.sample_numel : 0;
  const float step = p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size;
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const float next = pgd_linf_update(p.x_adv[i], to_float(static_cast<const GradT*>(p.grad)[i]),
                                     p.x[i], p.direction * step, eps, p.lower, p.upper);
  p.x_adv[i] = p.levels.count > 0.0f ? to_level(next, p.levels) : next;
}

// Elements [head, head + kVec * vectors) in vectors of kVec, one a thread; a thread more for each
// of the elements before (unaligned start) and after (tail). kVec elements of the gradient are 16
// bytes. A vector lies within one sample when eps or step size is per sample.
template <typename GradT, int kVec>
__global__ void __launch_bounds__(kPgdThreads)
    pgd_linf_step_kernel(PgdLinfParams p, int64_t head, int64_t vectors) {
  const int64_t thread = int64_t(blockIdx.x) * kPgdThreads + threadIdx.x;
  if (thread >= vectors) {
    const int64_t single = thread - vectors;
    const int64_t i = single < head ? single : single + vectors * kVec;
    if (i < p.numel) pgd_linf_step_one<GradT>(p, i);
    return;
  }
  const int64_t i = head + thread * kVec;
  const Vec<GradT, kVec> grad = load_vec<kVec>(static_cast<const GradT*>(p.grad) + i);
  Pixels<kVec> x_adv = load_pixels<kVec>(p.x_adv + i);
  const Pixels<kVec> x = load_pixels<kVec>(p.x + i);
  const bool per_sample = p.step_size_per_sample || p.eps_per_sample;
  const int64_t sample = per_sample ? i / p.sample_numel : 0;
  const float step =
      p.direction * (p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size);
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    x_adv[j] = pgd_linf_update(x_adv[j], to_float(grad.v[j]), x[j], step, eps, p.lower, p.upper);
  }
  to_levels(x_adv, p.levels);
  store_pixels<kVec>(p.x_adv + i, x_adv);
}

// For tensors whose vectors would straddle an alignment or a sample.
template <typename GradT>
__global__ void __launch_bounds__(kPgdThreads) pgd_linf_step_scalar_kernel(PgdLinfParams p) {
  const int64_t i = int64_t(blockIdx.x) * kPgdThreads + threadIdx.x;
  if (i < p.numel) pgd_linf_step_one<GradT>(p, i);
}

struct PgdLinfPlan {
  bool vector;
  int64_t head;  // elements before the first vector
  int64_t vectors;
  int64_t blocks;
};

// grad_size: bytes of one gradient element.
inline PgdLinfPlan plan_pgd_linf_step(const PgdLinfParams& p, int grad_size, int threads) {
  const int vec = 16 / grad_size;
  const bool per_sample = p.step_size_per_sample || p.eps_per_sample;
  // Skip to the first 16-byte boundary of the gradient; the pixels must then be on one as well.
  const int64_t head = int64_t((16 - reinterpret_cast<uintptr_t>(p.grad) % 16) % 16) / grad_size;
  const bool reaches =
      head < p.numel && aligned16(static_cast<const char*>(p.grad) + head * grad_size);
  const bool together = reaches && aligned16(p.x_adv + head) && aligned16(p.x + head);
  const bool within_samples = !per_sample || (head == 0 && p.sample_numel % vec == 0);
  if (!together || !within_samples) return {false, 0, 0, ceil_div(p.numel, threads)};
  const int64_t vectors = (p.numel - head) / vec;
  return {true, head, vectors, ceil_div(vectors + (p.numel - vectors * vec), threads)};
}

// One thread makes the noise of 4 elements that follow one another in logical order (channel, row,
// column), whatever the memory order is. kVector: the four are one aligned 16-byte vector.
template <bool kVector>
__global__ void __launch_bounds__(kPgdThreads)
    random_start_kernel(RandomStartParams p, Divisor blocks_per_sample) {
  const Divided block = divided(blockIdx.x, blocks_per_sample);
  const int64_t sample = block.quotient;
  const int64_t group = int64_t(block.remainder) * blockDim.x + threadIdx.x;
  if (4 * group >= p.sample_numel) return;
  const PhiloxBlock bits = philox_for_group(
      uint64_t(*p.seed), uint64_t(p.sample_ids ? p.sample_ids[sample] : sample), uint64_t(group));
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const float* x = p.x + sample * p.sample_numel;
  float* out = p.out + sample * p.sample_numel;
  if constexpr (kVector) {
    Pixels<4> pixels = load_pixels<4>(x + 4 * group);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      pixels[j] =
          random_start_element(pixels[j], bits.v[j], p.normal, eps, p.std, p.lower, p.upper);
    }
    to_levels(pixels, p.levels);
    store_pixels<4>(out + 4 * group, pixels);
  } else {
    const int64_t pixels = p.sample_numel / p.channels;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t e = 4 * group + j;
      if (e >= p.sample_numel) return;
      const int64_t i = p.channels == 1 ? e : e % pixels * p.channels + e / pixels;
      const float pixel =
          random_start_element(x[i], bits.v[j], p.normal, eps, p.std, p.lower, p.upper);
      out[i] = p.levels.count > 0.0f ? to_level(pixel, p.levels) : pixel;
    }
  }
}

struct RandomStartPlan {
  bool vector;
  int64_t threads;
  int64_t blocks_per_sample;
};

inline RandomStartPlan plan_random_start(const RandomStartParams& p) {
  const int64_t groups = ceil_div(p.sample_numel, 4);
  RandomStartPlan plan{};
  plan.vector = p.channels == 1 && p.sample_numel % 4 == 0 && aligned16(p.x) && aligned16(p.out);
  // A block is of one sample: a thread would have to divide 64-bit numbers to find its own.
  plan.threads = groups < kPgdThreads ? 32 * ceil_div(groups, 32) : kPgdThreads;
  plan.blocks_per_sample = ceil_div(groups, plan.threads);
  return plan;
}

void launch_pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, Stream stream) {
  if (p.numel == 0) return;
  for_dtype(grad_dtype, [&](auto example) {
    using T = decltype(example);
    const PgdLinfPlan plan = plan_pgd_linf_step(p, sizeof(T), kPgdThreads);
    if (plan.vector) {
      start<pgd_linf_step_kernel<T, 16 / sizeof(T)>>({plan.blocks, kPgdThreads}, stream, p,
                                                     plan.head, plan.vectors);
    } else {
      start<pgd_linf_step_scalar_kernel<T>>({plan.blocks, kPgdThreads}, stream, p);
    }
  });
}

void launch_random_start(const RandomStartParams& p, Stream stream) {
  if (p.batch == 0 || p.sample_numel == 0) return;
  const RandomStartPlan plan = plan_random_start(p);
  const Geometry geometry{p.batch * plan.blocks_per_sample, plan.threads};
  for_bool(plan.vector, [&](auto vector) {
    start<random_start_kernel<vector.value>>(geometry, stream, p, divisor(plan.blocks_per_sample));
  });
}

}  // namespace ard::cuda
