// The L-infinity PGD step and the random start: their parameters, and one element of each.
#pragma once

#include "common/half.h"
#include "common/levels.h"
#include "common/philox.h"

namespace ard {

// B batch, E elements per sample. Pointers are device pointers on a GPU, here as in all parameters.
struct PgdLinfParams {
  float* x_adv;                       // [numel] updated in place
  const void* grad;                   // [numel] float, f16 or bf16, memory order of x_adv
  const float* x;                     // [numel] memory order of x_adv
  const float* step_size_per_sample;  // [B] or null
  const float* eps_per_sample;        // [B] or null
  int64_t numel;
  int64_t sample_numel;  // E; used when a per-sample pointer is given
  float step_size;       // used when step_size_per_sample is null
  float eps;             // used when eps_per_sample is null
  float direction;       // +1 ascends the loss, -1 descends it (targeted)
  float lower, upper;    // pixel bounds
  Levels levels;         // of the result
};

struct RandomStartParams {
  float* out;                   // [B, E] same memory order as x
  const float* x;               // [B, E]
  const float* eps_per_sample;  // [B] or null
  const int64_t* seed;          // [1]
  const int64_t* sample_ids;    // [B] or null: the position in the batch
  int64_t batch;
  int64_t sample_numel;  // E
  int64_t channels;      // memory order within a sample: [E / channels, channels],
                         // 1 when the sample is contiguous
  float eps;             // used when eps_per_sample is null
  float std;             // of the normal start
  float lower, upper;    // pixel bounds, -inf and +inf when the start is not clamped
  Levels levels;         // of the result
  bool normal;
};

// min(max(value, x - eps), x + eps), then clamped to the pixel bounds.
ARD_HD float linf_project(float value, float x, float eps, float lower, float upper) {
  const float lowest = x - eps;
  const float projected = min_or_second(max_or_second(value, lowest), x + eps);
  const float clamped = clamp_nan(projected, lower, upper);
  // NaN pixels (or eps, or step) propagate as through torch.max; one test replaces four.
  return either_nan(value, lowest) ? value + lowest : clamped;
}

// x_adv + step * sign(grad), projected: Madry et al. 2018 in the order of operations of the
// published ARD code, bit for bit. sign(NaN) is 0 as in torch, a subnormal gradient counts, and
// step * sign is exact, so no contraction can change it.
ARD_HD float pgd_linf_update(float x_adv, float grad, float x, float signed_step, float eps,
                             float lower, float upper) {
  const float sign = float(int(grad > 0.0f) - int(grad < 0.0f));
  return linf_project(x_adv + signed_step * sign, x, eps, lower, upper);
}

// Uniform on (-1, 1), symmetric: the odd multiples of 2^-23, exact in float.
ARD_HD float uniform_symmetric(uint32_t bits) {
  const int32_t odd = int32_t((bits >> 9) << 1) + 1 - (1 << 23);
  return float(odd) * 0x1p-23f;
}

// Natural logarithm of a positive normal float, to 2 ulp, from correctly rounded operations only.
ARD_HD float log_exact_ops(float x) {
  // x = 2^k * m with m in [sqrt(1/2), sqrt(2)): subtracting the bits of sqrt(1/2) before the shift.
  const uint32_t bits = float_to_bits(x);
  const int32_t k = int32_t(bits - 0x3f3504f3u) >> 23;
  const float m = bits_to_float(bits - (uint32_t(k) << 23));
  // log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.1716.
  const float s = div_rn(add_rn(m, -1.0f), add_rn(m, 1.0f));
  const float z = mul_rn(s, s);
  float p = mul_rn(z, 0.22222222f);
  p = mul_rn(add_rn(p, 0.28571429f), z);
  p = mul_rn(add_rn(p, 0.4f), z);
  p = mul_rn(add_rn(p, 0.66666667f), z);
  const float log_m = add_rn(mul_rn(s, p), add_rn(s, s));
  return add_rn(mul_rn(float(k), 0.69314718f), log_m);
}

// Standard normal quantile of (1 + v) / 2 for v in (-1, 1): sqrt(2) * erfinv(v), with erfinv by
// M. Giles, "Approximating the erfinv function" (GPU Computing Gems, 2011), single precision.
ARD_HD float normal_from_symmetric(float v) {
  const float w = -log_exact_ops(mul_rn(add_rn(1.0f, -v), add_rn(1.0f, v)));
  const float wc = add_rn(w, -2.5f);
  float central = 2.81022636e-08f;
  central = add_rn(3.43273939e-07f, mul_rn(central, wc));
  central = add_rn(-3.5233877e-06f, mul_rn(central, wc));
  central = add_rn(-4.39150654e-06f, mul_rn(central, wc));
  central = add_rn(0.00021858087f, mul_rn(central, wc));
  central = add_rn(-0.00125372503f, mul_rn(central, wc));
  central = add_rn(-0.00417768164f, mul_rn(central, wc));
  central = add_rn(0.246640727f, mul_rn(central, wc));
  central = add_rn(1.50140941f, mul_rn(central, wc));
  const float wt = add_rn(sqrt_rn(w), -3.0f);
  float tail = -0.000200214257f;
  tail = add_rn(0.000100950558f, mul_rn(tail, wt));
  tail = add_rn(0.00134934322f, mul_rn(tail, wt));
  tail = add_rn(-0.00367342844f, mul_rn(tail, wt));
  tail = add_rn(0.00573950773f, mul_rn(tail, wt));
  tail = add_rn(-0.0076224613f, mul_rn(tail, wt));
  tail = add_rn(0.00943887047f, mul_rn(tail, wt));
  tail = add_rn(1.00167406f, mul_rn(tail, wt));
  tail = add_rn(2.83297682f, mul_rn(tail, wt));
  const float erfinv = mul_rn(w < 5.0f ? central : tail, v);
  return mul_rn(erfinv, 1.41421356f);
}

// One pixel of the random start: x plus uniform noise in (-eps, eps) or normal noise of the given
// standard deviation, then clamped.
ARD_HD float random_start_element(float x, uint32_t bits, bool normal, float eps, float std,
                                  float lower, float upper) {
  const float v = uniform_symmetric(bits);
  const float noise = normal ? mul_rn(std, normal_from_symmetric(v)) : mul_rn(eps, v);
  return clamp_nan(add_rn(x, noise), lower, upper);
}

namespace cpu {

// Each pixel to its nearest level; nothing where there are none.
void to_levels(float* pixels, int64_t count, const Levels& levels);

// Elements [begin, end) of the flattened tensors.
void pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, int64_t begin, int64_t end);

// Groups [begin, end) of 4 elements; every sample has ceil(E / 4) of them.
void random_start(const RandomStartParams& p, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

// As all launchers: chooses a kernel and starts it; errors of the launch are left for the caller.
void launch_pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, Stream stream);
void launch_random_start(const RandomStartParams& p, Stream stream);

}  // namespace cuda

}  // namespace ard
