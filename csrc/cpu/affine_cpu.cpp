#include "cpu/affine.h"

#include <type_traits>
#include <vector>

#include "core/affine_math.h"
#include "cpu/bit_mask.h"
#include "cpu/simd.h"

namespace ard::cpu {
namespace {

// Scale and shift of channels_last elements: element i at i % channels, and so on for a block more,
// so that those of any block are in a row.
class ChannelRow {
 public:
  ChannelRow(const float* scale, const float* shift, int64_t channels)
      : scale_(repeat(scale, kNoScale, channels)), shift_(repeat(shift, kNoAddend, channels)) {}
  const float* scale() const { return scale_.data(); }
  const float* shift() const { return shift_.data(); }

 private:
  static std::vector<float> repeat(const float* values, float absent, int64_t channels) {
    std::vector<float> out(size_t(channels + kAffineBlock), absent);
    for (size_t i = 0; values && i < out.size(); ++i) {
      out[i] = i < size_t(channels) ? values[i] : out[i - size_t(channels)];
    }
    return out;
  }

  std::vector<float> scale_, shift_;
};

// What the loops below have for the coefficients of elements in a row: one pair or a pair each.
struct Coefficients {
  const float* scale;
  const float* shift;
};

// Calls stretch(begin, count, coefficients, whether they are one pair) for the parts of a block
// that have their coefficients in a row. `row` is empty unless channels follow one another and
// there are coefficients.
template <typename Params, typename Stretch>
ARD_HD void each_stretch(const Params& p, const Coefficients& row, const float* shifts,
                         int64_t begin, int64_t end, const Stretch& stretch) {
  if (row.scale) {
    const int64_t channel = begin % p.channels;
    stretch(begin, end - begin, Coefficients{row.scale + channel, row.shift + channel},
            std::false_type{});
    return;
  }
  if (!p.scale && !shifts) {  // whatever the layout, all elements are alike
    const float scale = kNoScale, shift = kNoAddend;
    stretch(begin, end - begin, Coefficients{&scale, &shift}, std::true_type{});
    return;
  }
  while (begin < end) {
    const int64_t plane = begin / p.inner;
    const int64_t channel = plane % p.channels;
    const int64_t next = (plane + 1) * p.inner < end ? (plane + 1) * p.inner : end;
    const float scale = p.scale ? p.scale[channel] : kNoScale;
    const float shift = shifts ? shifts[channel] : kNoAddend;
    stretch(begin, next - begin, Coefficients{&scale, &shift}, std::true_type{});
    begin = next;
  }
}

template <typename T, bool kOne, bool kResidual>
ARD_HD void combine(const T* x, const T* residual, Coefficients c, float floor, float* out,
                    int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float added = kResidual ? to_float(residual[i]) : kNoAddend;
    out[i] = affine_relu_element(to_float(x[i]), c.scale[kOne ? 0 : i], c.shift[kOne ? 0 : i],
                                 added, floor);
  }
}

template <bool kOne>
ARD_HD void multiply(float* values, const float* scale, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) values[i] = mul_rn(values[i], scale[kOne ? 0 : i]);
}

// A loop of its own: with the arithmetic in front of the rounding gcc vectorises neither.
template <typename T>
ARD_HD void round_to(T* out, const float* values, int64_t count) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) out[i].bits = from_float<T>(values[i]).bits;
}

template <typename T, bool kResidual>
ARD_HD void forward_blocks(const AffineReluParams& p, const Coefficients& row, int64_t begin,
                           int64_t end) {
  const T* x = static_cast<const T*>(p.x);
  const T* residual = static_cast<const T*>(p.residual);
  T* y = static_cast<T*>(p.y);
  const float floor = relu_floor(p.relu);
  alignas(64) float wide[kAffineBlock];
  for (int64_t block = begin; block < end; block += kAffineBlock) {
    const int64_t stop = block + kAffineBlock < end ? block + kAffineBlock : end;
    float* values = wide;
    if constexpr (std::is_same_v<T, float>) values = y + block;
    each_stretch(p, row, p.shift, block, stop,
                 [&](int64_t i, int64_t count, Coefficients c, auto one)
                     __attribute__((always_inline)) {
                       combine<T, one.value, kResidual>(x + i, kResidual ? residual + i : nullptr,
                                                        c, floor, values + (i - block), count);
                     });
    if constexpr (!std::is_same_v<T, float>) round_to(y + block, wide, stop - block);
    if (!p.mask) continue;
    // The next block, which the processor does not foresee while it works on this one's mask: an
    // eighth of the time of a large tensor.
    const auto ahead = [&](int64_t i) __attribute__((always_inline)) {
      if (stop + i >= end) return;
      __builtin_prefetch(x + stop + i);
      if (kResidual) __builtin_prefetch(residual + stop + i);
      if (p.y != p.x) __builtin_prefetch(y + stop + i, 1);
    };
    write_mask(y + block, stop - block, p.mask + block / 8, ahead);
  }
}

template <typename T>
ARD_HD void backward_blocks(const AffineReluBackwardParams& p, const Coefficients& row,
                            int64_t begin, int64_t end) {
  const T* grad = static_cast<const T*>(p.grad);
  T* out = static_cast<T*>(p.out);
  alignas(64) float wide[kAffineBlock];
  for (int64_t block = begin; block < end; block += kAffineBlock) {
    const int64_t stop = block + kAffineBlock < end ? block + kAffineBlock : end;
    float* values = wide;
    if constexpr (std::is_same_v<T, float>) values = out + block;
    if (p.mask) {
      read_mask(p.mask + block / 8, grad + block, stop - block, values);
    } else {
      for (int64_t i = block; i < stop; ++i) values[i - block] = to_float(grad[i]);
    }
    if (p.scale) {
      each_stretch(p, row, nullptr, block, stop,
                   [&](int64_t i, int64_t count, Coefficients c, auto one)
                       __attribute__((always_inline)) {
                         multiply<one.value>(values + (i - block), c.scale, count);
                       });
    }
    if constexpr (!std::is_same_v<T, float>) round_to(out + block, wide, stop - block);
  }
}

template <typename T>
ARD_HD void forward(const AffineReluParams& p, const Coefficients& row, int64_t begin,
                    int64_t end) {
  p.residual ? forward_blocks<T, true>(p, row, begin, end)
             : forward_blocks<T, false>(p, row, begin, end);
}

#define ARD_AFFINE_LOOPS(name, T)                                                             \
  ARD_CLONES void forward_##name(const AffineReluParams& p, const Coefficients& row,          \
                                 int64_t begin, int64_t end) {                                \
    forward<T>(p, row, begin, end);                                                           \
  }                                                                                           \
  ARD_CLONES void backward_##name(const AffineReluBackwardParams& p, const Coefficients& row, \
                                  int64_t begin, int64_t end) {                               \
    backward_blocks<T>(p, row, begin, end);                                                   \
  }
ARD_AFFINE_LOOPS(f32, float)
ARD_AFFINE_LOOPS(f16, f16)
ARD_AFFINE_LOOPS(bf16, bf16)
#undef ARD_AFFINE_LOOPS

// Calls body with the row of coefficients of channels_last elements, an empty one for others.
template <typename Params, typename Body>
void with_row(const Params& p, const float* shift, const Body& body) {
  if (p.inner != 1 || (!p.scale && !shift)) return body(Coefficients{nullptr, nullptr});
  const ChannelRow row(p.scale, shift, p.channels);
  body(Coefficients{row.scale(), row.shift()});
}

}  // namespace

void affine_relu(const AffineReluParams& p, Dtype dtype, int64_t begin, int64_t end) {
  with_row(p, p.shift, [&](const Coefficients& row) {
    if (dtype == Dtype::f32) return forward_f32(p, row, begin, end);
    if (dtype == Dtype::f16) return forward_f16(p, row, begin, end);
    forward_bf16(p, row, begin, end);
  });
}

void affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, int64_t begin,
                          int64_t end) {
  with_row(p, nullptr, [&](const Coefficients& row) {
    if (dtype == Dtype::f32) return backward_f32(p, row, begin, end);
    if (dtype == Dtype::f16) return backward_f16(p, row, begin, end);
    backward_bf16(p, row, begin, end);
  });
}

}  // namespace ard::cpu
