#include "steps/pgd_linf.h"

#include "common/simd.h"

namespace ard::cpu {
namespace {

// One stretch of elements that share eps and step size. No restrict: x_adv may be x itself.
template <typename GradT>
ARD_HD void step_stretch(float* x_adv, const GradT* grad, const float* x, float signed_step,
                         float eps, float lower, float upper, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    x_adv[i] = pgd_linf_update(x_adv[i], to_float(grad[i]), x[i], signed_step, eps, lower, upper);
  }
}

ARD_CLONES void step(float* x_adv, const float* grad, const float* x, float signed_step, float eps,
                     float lower, float upper, int64_t count) {
  step_stretch(x_adv, grad, x, signed_step, eps, lower, upper, count);
}

ARD_CLONES void step(float* x_adv, const f16* grad, const float* x, float signed_step, float eps,
                     float lower, float upper, int64_t count) {
  step_stretch(x_adv, grad, x, signed_step, eps, lower, upper, count);
}

ARD_CLONES void step(float* x_adv, const bf16* grad, const float* x, float signed_step, float eps,
                     float lower, float upper, int64_t count) {
  step_stretch(x_adv, grad, x, signed_step, eps, lower, upper, count);
}

ARD_CLONES void round_to_levels(float* pixels, int64_t count, Levels levels) {
  for (int64_t i = 0; i < count; ++i) pixels[i] = to_level(pixels[i], levels);
}

// kLanes groups of 4 pixels in logical order, from group `first` of one sample. Padding past the
// sample's end is computed and dropped by the caller.
ARD_CLONES void noise_block(const float* x, float* out, uint64_t seed, uint64_t sample_id,
                            uint64_t first, bool normal, float eps, float std, float lower,
                            float upper) {
  uint32_t bits[4][kLanes];
  for (int l = 0; l < kLanes; ++l) {
    const PhiloxBlock block = philox_for_group(seed, sample_id, first + l);
    for (int j = 0; j < 4; ++j) bits[j][l] = block.v[j];
  }
  uint32_t ordered[4 * kLanes];
  for (int l = 0; l < kLanes; ++l) {
    for (int j = 0; j < 4; ++j) ordered[4 * l + j] = bits[j][l];
  }
  if (normal) {
    for (int i = 0; i < 4 * kLanes; ++i) {
      out[i] = random_start_element(x[i], ordered[i], true, eps, std, lower, upper);
    }
  } else {
    for (int i = 0; i < 4 * kLanes; ++i) {
      out[i] = random_start_element(x[i], ordered[i], false, eps, std, lower, upper);
    }
  }
}

}  // namespace

void to_levels(float* pixels, int64_t count, const Levels& levels) {
  if (levels.count > 0.0f) round_to_levels(pixels, count, levels);
}

void pgd_linf_step(const PgdLinfParams& p, Dtype grad_dtype, int64_t begin, int64_t end) {
  const bool per_sample = p.step_size_per_sample || p.eps_per_sample;
  while (begin < end) {
    const int64_t sample = per_sample ? begin / p.sample_numel : 0;
    const int64_t stop = per_sample ? (sample + 1) * p.sample_numel : end;
    const int64_t count = (stop < end ? stop : end) - begin;
    const float step_size =
        p.direction * (p.step_size_per_sample ? p.step_size_per_sample[sample] : p.step_size);
    const float eps = p.eps_per_sample ? p.eps_per_sample[sample] : p.eps;
    float* x_adv = p.x_adv + begin;
    const float* x = p.x + begin;
    for_dtype(grad_dtype, [&](auto example) {
      const auto* grad = static_cast<const decltype(example)*>(p.grad) + begin;
      step(x_adv, grad, x, step_size, eps, p.lower, p.upper, count);
    });
    to_levels(x_adv, count, p.levels);
    begin += count;
  }
}

void random_start(const RandomStartParams& p, int64_t begin, int64_t end) {
  const int64_t groups = (p.sample_numel + 3) / 4;
  const int64_t pixels = p.sample_numel / p.channels;
  // Logical element e = (channel, pixel) lies at pixel * channels + channel of its sample.
  const auto offset = [&](int64_t e) { return e % pixels * p.channels + e / pixels; };
  float x[4 * kLanes] = {}, out[4 * kLanes];
  while (begin < end) {
    const int64_t sample = begin / groups, first = begin % groups;
    int64_t count = groups - first < kLanes ? groups - first : kLanes;
    count = count < end - begin ? count : end - begin;
    const int64_t element = 4 * first;
    const int64_t left = p.sample_numel - element;
    const int64_t live = 4 * count < left ? 4 * count : left;
    const float* x_sample = p.x + sample * p.sample_numel;
    float* out_sample = p.out + sample * p.sample_numel;
    if (p.channels == 1) {
      for (int64_t i = 0; i < live; ++i) x[i] = x_sample[element + i];
    } else {
      for (int64_t i = 0; i < live; ++i) x[i] = x_sample[offset(element + i)];
    }
    noise_block(x, out, uint64_t(*p.seed), uint64_t(p.sample_ids ? p.sample_ids[sample] : sample),
                uint64_t(first), p.normal, p.eps_per_sample ? p.eps_per_sample[sample] : p.eps,
                p.std, p.lower, p.upper);
    to_levels(out, live, p.levels);
    if (p.channels == 1) {
      for (int64_t i = 0; i < live; ++i) out_sample[element + i] = out[i];
    } else {
      for (int64_t i = 0; i < live; ++i) out_sample[offset(element + i)] = out[i];
    }
    begin += count;
  }
}

}  // namespace ard::cpu
