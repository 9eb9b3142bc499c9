// Reductions over the lanes of a warp. Every lane gets the result; the order of operations is
// fixed, so results are the same in every run.
#pragma once

#include <type_traits>

#include "common/math.h"

namespace ard::cuda {

struct SumOp {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct MaxOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return a > b ? a : b; }
};

struct MinOp {
  __device__ __forceinline__ float operator()(float a, float b) const { return a < b ? a : b; }
};

// The largest value and where it is; the lowest index among equals, so that all threads agree.
struct Largest {
  float value;
  int index;
};

__device__ __forceinline__ Largest larger(Largest a, Largest b) {
  const bool second = b.value > a.value || (b.value == a.value && b.index < a.index);
  return second ? b : a;
}

struct LargerOp {
  __device__ __forceinline__ Largest operator()(Largest a, Largest b) const { return larger(a, b); }
};

// A value as 32-bit words, to move it from thread to thread.
template <typename V>
struct Words {
  static_assert(sizeof(V) % 4 == 0 && std::is_trivially_copyable_v<V>, "not made of words");
  static constexpr int kCount = sizeof(V) / 4;
  uint32_t at[kCount];

  __device__ __forceinline__ Words() {}
  __device__ __forceinline__ explicit Words(const V& value) { memcpy(at, &value, sizeof(V)); }
  __device__ __forceinline__ V value() const {
    V value;
    memcpy(&value, at, sizeof(V));
    return value;
  }
};

constexpr unsigned kAllLanes = 0xffffffffu;

// The value of the lane whose number differs in these bits; `lanes` are those that call it.
template <typename V>
__device__ __forceinline__ V lane_xor(const V& mine, int bits, unsigned lanes) {
  Words<V> words(mine);
#pragma unroll
  for (int n = 0; n < Words<V>::kCount; ++n) {
    words.at[n] = __shfl_xor_sync(lanes, words.at[n], bits);
  }
  return words.value();
}

// Over every kLanes lanes of a warp. V is whatever op combines: a number, or a struct of several
// with an operation each.
template <int kLanes = 32, typename V, typename Op>
__device__ __forceinline__ V warp_reduce(V value, Op op, unsigned lanes = kAllLanes) {
#pragma unroll
  for (int bits = kLanes / 2; bits > 0; bits /= 2) {
    value = op(value, lane_xor(value, bits, lanes));
  }
  return value;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// By two reductions of integers, which hardware from 8.0 on has. Not for NaN.
template <int kLanes = 32>
__device__ __forceinline__ Largest warp_reduce(Largest mine, LargerOp op,
                                               unsigned lanes = kAllLanes) {
  if constexpr (kLanes < 32) return warp_reduce<kLanes, Largest, LargerOp>(mine, op, lanes);
  // In the order of unsigned numbers; + 0 because -0 equals 0.
  const uint32_t bits = float_to_bits(mine.value + 0.0f);
  const uint32_t key = bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
  const uint32_t most = __reduce_max_sync(kAllLanes, key);
  const int index = __reduce_min_sync(kAllLanes, key == most ? mine.index : 0x7fffffff);
  return Largest{bits_to_float(most ^ (most >> 31 ? 0x80000000u : 0xffffffffu)), index};
}
#endif

}  // namespace ard::cuda
