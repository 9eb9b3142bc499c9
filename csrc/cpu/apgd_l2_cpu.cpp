// The L2 step of Auto-PGD: four passes over a sample, whose norms are needed in between.
#include <memory>

#include "core/half.h"
#include "cpu/apgd_select.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace ard::cpu {
namespace {

// Sums are kept in kLanes floats over at most this many elements, then in double.
constexpr int64_t kSumBlock = 1024;

// Sum over [0, count) of the squares of term(i), which may write what it likes at i.
template <typename Term>
ARD_HD double sum_of_squares(int64_t count, const Term& term) {
  double sum = 0.0;
  for (int64_t begin = 0; begin < count; begin += kSumBlock) {
    const int64_t left = count - begin, block = left < kSumBlock ? left : kSumBlock;
    const int64_t end = begin + block, whole = begin + block / kLanes * kLanes;
    float lanes[kLanes] = {};
    for (int64_t i = begin; i < whole; i += kLanes) {
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        const float value = term(i + l);
        lanes[l] += value * value;
      }
    }
    for (int64_t i = whole; i < end; ++i) {
      const float value = term(i);
      lanes[i - whole] += value * value;
    }
    for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  }
  return sum;
}

struct ScaledGradient {
  const float* grad;
  float scale;
  ARD_HD float operator()(int64_t i) const { return l2_clean(grad[i]) * scale; }
};

struct Stepped {
  const float *current, *grad, *x;
  float scale, factor;
  ARD_HD float operator()(int64_t i) const {
    return apgd_l2_stepped(current[i], grad[i], x[i], scale, factor);
  }
};

// Leaves the perturbation where the iterate before was.
struct Mixed {
  Stepped stepped;
  float* x_prev;
  float shrink, momentum, one_minus_momentum, lower, upper;
  ARD_HD float operator()(int64_t i) const {
    const float value = apgd_l2_mixed(stepped(i), shrink, stepped.current[i], stepped.x[i],
                                      x_prev[i], momentum, one_minus_momentum, lower, upper);
    x_prev[i] = value;
    return value;
  }
};

ARD_CLONES float largest_of(const float* grad, int64_t count) {
  float tops[kLanes] = {};
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      const float value = l2_clean(grad[i + l]);
      tops[l] = max_or_second(value, tops[l]);
      tops[l] = max_or_second(-value, tops[l]);
    }
  }
  for (int64_t i = whole; i < count; ++i) {
    const float value = l2_clean(grad[i]);
    tops[0] = max_or_second(value, tops[0]);
    tops[0] = max_or_second(-value, tops[0]);
  }
  float largest = tops[0];
  for (int l = 1; l < kLanes; ++l) largest = max_or_second(tops[l], largest);
  return largest;
}

ARD_CLONES double norm_squared(const ScaledGradient& term, int64_t count) {
  return sum_of_squares(count, term);
}

ARD_CLONES double norm_squared(const Stepped& term, int64_t count) {
  return sum_of_squares(count, term);
}

ARD_CLONES double norm_squared(const Mixed& term, int64_t count) {
  return sum_of_squares(count, term);
}

ARD_CLONES void project(float* x_prev, const float* x, float shrink, float lower, float upper,
                        int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    x_prev[i] = apgd_l2_projected(x_prev[i], x[i], shrink, lower, upper);
  }
}

ARD_CLONES void convert(const f16* from, float* to, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

ARD_CLONES void convert(const bf16* from, float* to, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

// The gradient as floats: where it lies, or converted into the buffer.
const float* as_floats(const float* grad, float*, int64_t) { return grad; }

template <typename GradT>
const float* as_floats(const GradT* grad, float* buffer, int64_t count) {
  convert(grad, buffer, count);
  return buffer;
}

template <typename GradT>
void l2_sample(const ApgdParams& p, int64_t sample, float* buffer) {
  const ApgdDecision d = apgd_decide(p, sample);
  apgd_store(p.state_out, p.batch, sample, d.record);
  const int64_t count = p.sample_numel, at = sample * count;
  const GradT* typed = apgd_select<GradT>(p, d, at, count);
  if (!typed) return;
  const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
  const float* grad = as_floats(typed, buffer, count);
  const float* x = p.x + at;
  float* x_prev = p.x_prev + at;
  const float scale = l2_scale(largest_of(grad, count));
  const double scaled_norm = norm_squared(ScaledGradient{grad, scale}, count);
  const float factor = l2_step_factor(d.record.step_size, scaled_norm);
  const Stepped stepped{p.x_adv + at, grad, x, scale, factor};
  const float inner = l2_shrink(eps, norm_squared(stepped, count));
  const Mixed mixed{stepped, x_prev, inner, p.momentum, p.one_minus_momentum, p.lower, p.upper};
  const float outer = l2_shrink(eps, norm_squared(mixed, count));
  project(x_prev, x, outer, p.lower, p.upper, count);
}

}  // namespace

void apgd_l2_step(const ApgdParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  const bool converts = grad_dtype != Dtype::f32;
  const std::unique_ptr<float[]> buffer(converts ? new float[size_t(p.sample_numel)] : nullptr);
  for (int64_t sample = begin; sample < end; ++sample) {
    switch (grad_dtype) {
      case Dtype::f32:
        l2_sample<float>(p, sample, nullptr);
        break;
      case Dtype::f16:
        l2_sample<f16>(p, sample, buffer.get());
        break;
      case Dtype::bf16:
        l2_sample<bf16>(p, sample, buffer.get());
        break;
    }
  }
}

}  // namespace ard::cpu
