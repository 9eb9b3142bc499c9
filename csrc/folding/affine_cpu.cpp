#include "folding/affine.h"

#include <type_traits>
#include <vector>

#include "common/simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ard::cpu {
namespace {

// The mask of rectified values, 16 bits at a time. The compiler finds no vector form for gathering
// bits, and SSE2, which every x86-64 has, has an instruction for it.

constexpr int kMaskBits = 16;

#if defined(__SSE2__)

ARD_HD __m128i zeros_of(const float* y) {  // of 4
  return _mm_castps_si128(_mm_cmpeq_ps(_mm_loadu_ps(y), _mm_setzero_ps()));
}

ARD_HD __m128i zeros_of(const void* y) {  // of 8 of 16 bits
  const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(y));
  return _mm_cmpeq_epi16(_mm_add_epi16(bits, bits), _mm_setzero_si128());
}

ARD_HD uint32_t pass_bits(const float* y) {
  const __m128i low = _mm_packs_epi32(zeros_of(y), zeros_of(y + 4));
  const __m128i high = _mm_packs_epi32(zeros_of(y + 8), zeros_of(y + 12));
  return ~uint32_t(_mm_movemask_epi8(_mm_packs_epi16(low, high)));
}

template <typename Half>
ARD_HD uint32_t pass_bits(const Half* y) {
  const void* high = y + 8;
  return ~uint32_t(
      _mm_movemask_epi8(_mm_packs_epi16(zeros_of(static_cast<const void*>(y)), zeros_of(high))));
}

#else

template <typename T>
ARD_HD uint32_t pass_bits(const T* y) {
  uint32_t bits = 0;
  for (int l = 0; l < kMaskBits; ++l) bits |= passes(y[l]) << l;
  return bits;
}

#endif

// Bit l of the result for y[l]; the bytes of `count` values, of which the last may be part.
// `ahead(i)` is called for every 16 values: there is time to ask memory for what comes next.
template <typename T, typename Ahead>
ARD_HD void write_mask(const T* y, int64_t count, uint8_t* mask, const Ahead& ahead) {
  int64_t i = 0;
  for (; i + kMaskBits <= count; i += kMaskBits) {
    const uint32_t bits = pass_bits(y + i);
    const uint8_t bytes[] = {uint8_t(bits), uint8_t(bits >> 8)};
    memcpy(mask + i / 8, bytes, 2);
    ahead(i);
  }
  for (; i < count; i += 8) {
    uint32_t bits = 0;
    for (int64_t l = 0; l < 8 && i + l < count; ++l) bits |= passes(y[i + l]) << l;
    mask[i / 8] = uint8_t(bits);
  }
}

// out = grad where the bit is set and 0 elsewhere, in float.
template <typename T>
ARD_HD void read_mask(const uint8_t* mask, const T* grad, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + kMaskBits <= count; i += kMaskBits) {
    const uint32_t bits = mask[i / 8] | uint32_t(mask[i / 8 + 1]) << 8;
    ARD_LANES for (int l = 0; l < kMaskBits; ++l) {
      out[i + l] = where_bit(to_float(grad[i + l]), (bits >> l) & 1u);
    }
  }
  for (; i < count; ++i) out[i] = where_bit(to_float(grad[i]), (mask[i / 8] >> (i % 8)) & 1u);
}

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

#define ARD_AFFINE_LOOPS(T)                                                                  \
  ARD_CLONES void affine_loop(const AffineReluParams& p, T, const Coefficients& row,         \
                              int64_t begin, int64_t end) {                                  \
    forward<T>(p, row, begin, end);                                                          \
  }                                                                                          \
  ARD_CLONES void affine_loop(const AffineReluBackwardParams& p, T, const Coefficients& row, \
                              int64_t begin, int64_t end) {                                  \
    backward_blocks<T>(p, row, begin, end);                                                  \
  }
ARD_AFFINE_LOOPS(float)
ARD_AFFINE_LOOPS(f16)
ARD_AFFINE_LOOPS(bf16)
#undef ARD_AFFINE_LOOPS

// With the row of coefficients of channels_last elements, an empty one for others.
template <typename Params>
void with_row(const Params& p, const float* shift, Dtype dtype, int64_t begin, int64_t end) {
  const auto loop = [&](const Coefficients& row) {
    for_dtype(dtype, [&](auto example) { affine_loop(p, example, row, begin, end); });
  };
  if (p.inner != 1 || (!p.scale && !shift)) return loop(Coefficients{nullptr, nullptr});
  const ChannelRow row(p.scale, shift, p.channels);
  loop(Coefficients{row.scale(), row.shift()});
}

}  // namespace

void affine_relu(const AffineReluParams& p, Dtype dtype, int64_t begin, int64_t end) {
  with_row(p, p.shift, dtype, begin, end);
}

void affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, int64_t begin,
                          int64_t end) {
  with_row(p, nullptr, dtype, begin, end);
}

}  // namespace ard::cpu
