// affine_relu and its backward pass: one pass over the tensors, and a bit an element beside them.
//
// Lanes of a warp load and store 16-byte vectors that follow one another. One of float holds half a
// byte of the mask: two lanes make a whole one between them, which keeps every access to the
// tensors a full line (8 floats a lane would touch each line twice).
#include "common/divisor.h"
#include "common/launch.h"
#include "common/vectors.cuh"
#include "folding/affine.h"

namespace ard::cuda {

constexpr int kAffineThreads = 256;
constexpr int kAffineVectors = 2;  // of 16 bytes, a thread

// How the 16-byte vectors lie among the channels.
enum class Spread {
  one,  // each in one channel, or there are no coefficients
  row,  // each over consecutive channels, whose coefficients are 16-byte vectors too
  any,
};

struct AffineDivisors {
  Divisor run;  // one: vectors of a channel in a row; row: vectors of all channels
  Divisor channels, inner;
};

struct AffinePlan {
  bool vector;  // else a thread takes the 8 elements of a byte of the mask, one by one
  Spread spread;
  AffineDivisors by;
  uint32_t blocks;  // each of kAffineThreads
};

// Of the elements of a vector.
template <int kVec>
struct Coefficients {
  float scale[kVec], shift[kVec];
};

// Those of vector v; where an array is null, the values that change nothing.
template <Spread kSpread, int kVec>
__device__ __forceinline__ Coefficients<kVec> load_coefficients(const float* scale,
                                                                const float* shift,
                                                                const AffineDivisors& by,
                                                                uint32_t v) {
  Coefficients<kVec> out;
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    out.scale[j] = kNoScale;
    out.shift[j] = kNoAddend;
  }
  if (!scale && !shift) return out;
  if constexpr (kSpread == Spread::one) {
    const uint32_t channel = divided(quotient(v, by.run), by.channels).remainder;
    const float factor = scale ? scale[channel] : kNoScale;
    const float addend = shift ? shift[channel] : kNoAddend;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      out.scale[j] = factor;
      out.shift[j] = addend;
    }
  } else if constexpr (kSpread == Spread::row) {
    const uint32_t first = divided(v, by.run).remainder * kVec;
#pragma unroll
    for (int j = 0; j < kVec; j += 4) {
      if (scale) store_vec<4>(out.scale + j, load_vec<4>(scale + first + j));
      if (shift) store_vec<4>(out.shift + j, load_vec<4>(shift + first + j));
    }
  } else {
    // Channel and place in it of element v * kVec, whose number may need more than 32 bits.
    const Divided plane = divided(v, by.inner), ahead = divided(plane.remainder * kVec, by.inner);
    const uint32_t first = divided(plane.quotient, by.channels).remainder * kVec + ahead.quotient;
    uint32_t channel = divided(first, by.channels).remainder, place = ahead.remainder;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if (scale) out.scale[j] = scale[channel];
      if (shift) out.shift[j] = shift[channel];
      if (++place == by.inner.number) {
        place = 0;
        if (++channel == by.channels.number) channel = 0;
      }
    }
  }
  return out;
}

// Elements [kCount * v, kCount * v + kCount) as far as there are any, one by one; returns their
// bits of the mask.
template <int kCount, typename T>
__device__ __forceinline__ uint32_t affine_relu_few(const AffineReluParams& p,
                                                    const AffineDivisors& divisors, uint32_t v) {
  const int64_t begin = int64_t(v) * kCount;
  const int left = p.numel - begin < kCount ? int(p.numel - begin) : kCount;
  const T* x = static_cast<const T*>(p.x) + begin;
  const T* residual = static_cast<const T*>(p.residual) + (p.residual ? begin : 0);
  T* out = static_cast<T*>(p.y) + begin;
  const Coefficients<kCount> by =
      load_coefficients<Spread::any, kCount>(p.scale, p.shift, divisors, v);
  const float floor = relu_floor(p.relu);
  uint32_t bits = 0;
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (j < left) {
      const float added = residual ? to_float(residual[j]) : kNoAddend;
      const T y = from_float<T>(
          affine_relu_element(to_float(x[j]), by.scale[j], by.shift[j], added, floor));
      out[j] = y;
      bits |= passes(y) << j;
    }
  }
  return bits;
}

// 16 bytes of any type. Halves that live across a branch would be held one by one, and taken out
// of their words for it.
template <typename T>
__device__ __forceinline__ Vec<uint32_t, 4> load_words(const T* from) {
  return load_vec<4>(reinterpret_cast<const uint32_t*>(from));
}

template <typename T>
__device__ __forceinline__ Floats<16 / sizeof(T)> to_floats(const Vec<uint32_t, 4>& words) {
  Vec<T, 16 / sizeof(T)> values;
  memcpy(values.v, words.v, sizeof(words));
  return to_floats(values);
}

// The bits of the mask of a vector, as of passes().
template <typename T, int kVec>
__device__ __forceinline__ uint32_t passing(const Vec<T, kVec>& y) {
  uint32_t words[4], bits = 0;
  memcpy(words, y.v, sizeof(words));
#pragma unroll
  for (int j = 0; j < kVec; ++j) {
    const uint32_t magnitude =
        sizeof(T) == 4 ? 0x7fffffffu : 0x7fffu << (j % 2 * 16);  // in its word
    bits |= ((words[j * sizeof(T) / 4] & magnitude) != 0 ? 1u : 0u) << j;
  }
  return bits;
}

// The mask's bytes of the vectors at `first` and kAffineThreads further on, of which `bits` are
// this thread's.
template <int kVec>
__device__ __forceinline__ void store_bits(uint8_t* mask, int64_t numel, uint32_t first,
                                           const uint32_t (&bits)[kAffineVectors]) {
  const uint32_t bytes = uint32_t((numel + 7) / 8);
  if constexpr (kVec == 8) {
#pragma unroll
    for (int k = 0; k < kAffineVectors; ++k) {
      const uint32_t at = first + k * kAffineThreads;
      if (at < bytes) mask[at] = uint8_t(bits[k]);
    }
  } else {
    static_assert(kVec == 4 && kAffineVectors == 2, "a pair of lanes makes a pair of bytes");
    // The even lane makes the byte of the first vectors, the odd one that of the second ones.
    const bool odd = threadIdx.x % 2 != 0;
    const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? bits[0] : bits[1], 1);
    const uint32_t byte = odd ? other | bits[1] << 4 : bits[0] | other << 4;
    const uint32_t at = first / 2 + (odd ? kAffineThreads / 2 : 0);
    if (at < bytes) mask[at] = uint8_t(byte);
  }
}

// One block at least on a multiprocessor: without that word the compiler chose fewer registers for
// itself than it needs, and spilled.
template <typename T, Spread kSpread, int kVec>
__global__ void __launch_bounds__(kAffineThreads, 1)
    affine_relu_kernel(AffineReluParams p, AffineDivisors divisors) {
  static_assert(kVec * sizeof(T) == 16, "vectors of 16 bytes");
  const uint32_t first = blockIdx.x * (kAffineThreads * kAffineVectors) + threadIdx.x;
  const uint32_t vectors = uint32_t(p.numel / kVec);
  const T* x = static_cast<const T*>(p.x);
  const T* residual = static_cast<const T*>(p.residual);
  Vec<uint32_t, 4> values[kAffineVectors], added[kAffineVectors];
#pragma unroll
  for (int k = 0; k < kAffineVectors; ++k) {
    const uint32_t v = first + k * kAffineThreads;
    if (v < vectors) {
      values[k] = load_words(x + int64_t(v) * kVec);
      if (residual) added[k] = load_words(residual + int64_t(v) * kVec);
    }
  }
  const float floor = relu_floor(p.relu);
  uint32_t bits[kAffineVectors] = {};
#pragma unroll
  for (int k = 0; k < kAffineVectors; ++k) {
    const uint32_t v = first + k * kAffineThreads;
    if (v < vectors) {
      const Coefficients<kVec> by = load_coefficients<kSpread, kVec>(p.scale, p.shift, divisors, v);
      Floats<kVec> x = to_floats<T>(values[k]), extra = to_floats<T>(added[k]);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        x[j] = affine_relu_element(x[j], by.scale[j], by.shift[j], residual ? extra[j] : kNoAddend,
                                   floor);
      }
      const Vec<T, kVec> y = from_floats<T>(x);
      bits[k] = passing(y);
      store_global<kVec>(static_cast<T*>(p.y) + int64_t(v) * kVec, y);
    } else if (int64_t(v) * kVec < p.numel) {  // a part of a vector
      bits[k] = affine_relu_few<kVec, T>(p, divisors, v);
    }
  }
  if (p.mask) store_bits<kVec>(p.mask, p.numel, first, bits);
}

// For tensors that are not aligned.
template <typename T>
__global__ void __launch_bounds__(kAffineThreads)
    affine_relu_bytes_kernel(AffineReluParams p, AffineDivisors divisors) {
  const uint32_t byte = blockIdx.x * kAffineThreads + threadIdx.x;
  if (int64_t(byte) * 8 >= p.numel) return;
  const uint32_t bits = affine_relu_few<8, T>(p, divisors, byte);
  if (p.mask) p.mask[byte] = uint8_t(bits);
}

template <int kCount, typename T>
__device__ __forceinline__ void affine_relu_backward_few(const AffineReluBackwardParams& p,
                                                         const AffineDivisors& divisors,
                                                         uint32_t v) {
  const int64_t begin = int64_t(v) * kCount;
  const int left = p.numel - begin < kCount ? int(p.numel - begin) : kCount;
  const T* grad = static_cast<const T*>(p.grad) + begin;
  T* out = static_cast<T*>(p.out) + begin;
  // kCount elements lie within one byte of the mask.
  const uint32_t bits = p.mask ? uint32_t(p.mask[begin / 8]) >> (begin % 8) : ~0u;
  const Coefficients<kCount> by =
      load_coefficients<Spread::any, kCount>(p.scale, nullptr, divisors, v);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    if (j < left) {
      out[j] = from_float<T>(mul_rn(where_bit(to_float(grad[j]), (bits >> j) & 1u), by.scale[j]));
    }
  }
}

template <typename T, Spread kSpread, int kVec>
__global__ void __launch_bounds__(kAffineThreads)
    affine_relu_backward_kernel(AffineReluBackwardParams p, AffineDivisors divisors) {
  static_assert(kVec * sizeof(T) == 16, "vectors of 16 bytes");
  const uint32_t first = blockIdx.x * (kAffineThreads * kAffineVectors) + threadIdx.x;
  const uint32_t vectors = uint32_t(p.numel / kVec);
  const T* grad = static_cast<const T*>(p.grad);
  Vec<uint32_t, 4> values[kAffineVectors];
  uint32_t bits[kAffineVectors];
#pragma unroll
  for (int k = 0; k < kAffineVectors; ++k) {
    const uint32_t v = first + k * kAffineThreads;
    bits[k] = ~0u;
    if (v < vectors) {
      values[k] = load_words(grad + int64_t(v) * kVec);
      if (p.mask) bits[k] = kVec == 8 ? p.mask[v] : uint32_t(p.mask[v / 2]) >> (v % 2 * 4);
    }
  }
#pragma unroll
  for (int k = 0; k < kAffineVectors; ++k) {
    const uint32_t v = first + k * kAffineThreads;
    if (v < vectors) {
      const Coefficients<kVec> by = load_coefficients<kSpread, kVec>(p.scale, nullptr, divisors, v);
      Floats<kVec> out = to_floats<T>(values[k]);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        out[j] = mul_rn(where_bit(out[j], (bits[k] >> j) & 1u), by.scale[j]);
      }
      store_global<kVec>(static_cast<T*>(p.out) + int64_t(v) * kVec, from_floats<T>(out));
    } else if (int64_t(v) * kVec < p.numel) {  // a part of a vector
      affine_relu_backward_few<kVec, T>(p, divisors, v);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kAffineThreads)
    affine_relu_backward_bytes_kernel(AffineReluBackwardParams p, AffineDivisors divisors) {
  const uint32_t byte = blockIdx.x * kAffineThreads + threadIdx.x;
  if (int64_t(byte) * 8 < p.numel) affine_relu_backward_few<8, T>(p, divisors, byte);
}

inline bool fits(const void* pointer) { return pointer == nullptr || aligned16(pointer); }

// aligned: whether all tensors are; the coefficients may be null.
inline AffinePlan plan_affine(int64_t numel, int64_t channels, int64_t inner, const float* scale,
                              const float* shift, bool aligned, int item_size) {
  const int64_t vec = 16 / item_size;
  AffinePlan plan{};
  // The kernels count vectors and places in a channel in 31 bits, which Divisor asks for
  constexpr int64_t kMost = int64_t(1) << 28;
  const int64_t most = kMost * 8 * vec;
  if (numel > most || channels > kMost || inner > kMost) {
    throw std::runtime_error(
        "ard_fast: affine_relu on CUDA takes up to 2^28 channels and pixels "
        "and, of this dtype, " +
        std::to_string(most) + " elements, got " + std::to_string(channels) + ", " +
        std::to_string(inner) + " and " + std::to_string(numel));
  }
  plan.vector = aligned;
  const int64_t tile = kAffineThreads * (aligned ? kAffineVectors * vec : 8);
  plan.blocks = uint32_t(ceil_div(numel, tile));
  int64_t run = 1;
  if ((!scale && !shift) || (inner > 1 && inner % vec == 0)) {
    plan.spread = Spread::one;
    if (inner % vec == 0) run = inner / vec;
  } else if (inner == 1 && channels % vec == 0 && fits(scale) && fits(shift)) {
    plan.spread = Spread::row;
    run = channels / vec;
  } else {
    plan.spread = Spread::any;
  }
  plan.by = AffineDivisors{divisor(run), divisor(channels), divisor(inner)};
  return plan;
}

inline AffinePlan plan_affine_relu(const AffineReluParams& p, int item_size) {
  const bool aligned = aligned16(p.x) && aligned16(p.y) && fits(p.residual);
  return plan_affine(p.numel, p.channels, p.inner, p.scale, p.shift, aligned, item_size);
}

inline AffinePlan plan_affine_relu_backward(const AffineReluBackwardParams& p, int item_size) {
  const bool aligned = aligned16(p.grad) && aligned16(p.out);
  return plan_affine(p.numel, p.channels, p.inner, p.scale, nullptr, aligned, item_size);
}

template <typename Body>
void for_spread(Spread spread, Body body) {
  if (spread == Spread::one) return body(std::integral_constant<Spread, Spread::one>{});
  if (spread == Spread::row) return body(std::integral_constant<Spread, Spread::row>{});
  body(std::integral_constant<Spread, Spread::any>{});
}

void launch_affine_relu(const AffineReluParams& p, Dtype dtype, Stream stream) {
  if (p.numel == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const AffinePlan plan = plan_affine_relu(p, sizeof(T));
    const Geometry geometry{plan.blocks, kAffineThreads};
    if (!plan.vector) return start<affine_relu_bytes_kernel<T>>(geometry, stream, p, plan.by);
    for_spread(plan.spread, [&](auto spread) {
      start<affine_relu_kernel<T, spread.value, 16 / sizeof(T)>>(geometry, stream, p, plan.by);
    });
  });
}

void launch_affine_relu_backward(const AffineReluBackwardParams& p, Dtype dtype, Stream stream) {
  if (p.numel == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const AffinePlan plan = plan_affine_relu_backward(p, sizeof(T));
    const Geometry geometry{plan.blocks, kAffineThreads};
    if (!plan.vector)
      return start<affine_relu_backward_bytes_kernel<T>>(geometry, stream, p, plan.by);
    for_spread(plan.spread, [&](auto spread) {
      start<affine_relu_backward_kernel<T, spread.value, 16 / sizeof(T)>>(geometry, stream, p,
                                                                          plan.by);
    });
  });
}

}  // namespace ard::cuda
