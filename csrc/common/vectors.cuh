// Elements that one thread moves together by one load or store: 16 bytes when N * sizeof(T) is 16.
#pragma once

#include <type_traits>

#include "common/half.h"
#include "common/levels.h"

namespace ard::cuda {

template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

template <int N, typename T>
__device__ __forceinline__ Vec<T, N> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}

template <int N, typename T>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, N>& value) {
  *reinterpret_cast<Vec<T, N>*>(to) = value;
}

template <int N>
struct Floats {
  float v[N];
  __device__ __forceinline__ float& operator[](int j) { return v[j]; }
  __device__ __forceinline__ float operator[](int j) const { return v[j]; }
};

// Half types are converted in pairs, as 32-bit words: by elements, the compiler first takes each
// one out of its word. Hardware before 8.0 has no such instructions.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <typename T, int N>
constexpr bool kInPairs = sizeof(T) == 2 && N % 2 == 0;
#else
template <typename T, int N>
constexpr bool kInPairs = false;
#endif

// Each value by to_float.
template <typename T, int N>
__device__ __forceinline__ Floats<N> to_floats(const Vec<T, N>& values) {
  Floats<N> out;
  if constexpr (kInPairs<T, N>) {
    uint32_t words[N / 2];
    memcpy(words, values.v, sizeof(words));
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      if constexpr (std::is_same_v<T, bf16>) {
        out[2 * k] = bits_to_float(words[k] << 16);
        out[2 * k + 1] = bits_to_float(words[k] & 0xffff0000u);
      } else {
        out[2 * k] = to_float(T{uint16_t(words[k])});
        out[2 * k + 1] = to_float(T{uint16_t(words[k] >> 16)});
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = to_float(values.v[j]);
  }
  return out;
}

// Each value by from_float<T>.
template <typename T, int N>
__device__ __forceinline__ Vec<T, N> from_floats(const Floats<N>& values) {
  Vec<T, N> out;
  if constexpr (kInPairs<T, N>) {
    uint32_t words[N / 2];
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      const float low = values[2 * k], high = values[2 * k + 1];
      if constexpr (std::is_same_v<T, bf16>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(words[k]) : "f"(high), "f"(low));
      } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(words[k]) : "f"(high), "f"(low));
      }
    }
    memcpy(out.v, words, sizeof(words));
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) out.v[j] = from_float<T>(values[j]);
  }
  return out;
}

// As store_vec, to global memory, and surely at once: between branches the compiler may store the
// elements of a struct one by one.
template <int N, typename T>
__device__ __forceinline__ void store_global(T* to, const Vec<T, N>& value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(value) == 16) {
    const uint32_t* words = reinterpret_cast<const uint32_t*>(value.v);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                 : "memory");
    return;
  }
#endif
  store_vec<N>(to, value);
}

// Pixels that one thread handles together, as many as the elements of a gradient vector: floats in
// 16-byte vectors, or one.
template <int kVec>
struct Pixels {
  static constexpr int kWide = kVec == 1 ? 1 : 4;
  Vec<float, kWide> quad[kVec / kWide];
  __device__ __forceinline__ float& operator[](int j) { return quad[j / kWide].v[j % kWide]; }
  __device__ __forceinline__ float operator[](int j) const { return quad[j / kWide].v[j % kWide]; }
};

template <int kVec>
__device__ __forceinline__ Pixels<kVec> load_pixels(const float* from) {
  constexpr int kWide = Pixels<kVec>::kWide;
  Pixels<kVec> out;
#pragma unroll
  for (int q = 0; q < kVec / kWide; ++q) out.quad[q] = load_vec<kWide>(from + kWide * q);
  return out;
}

template <int kVec>
__device__ __forceinline__ void store_pixels(float* to, const Pixels<kVec>& pixels) {
  constexpr int kWide = Pixels<kVec>::kWide;
#pragma unroll
  for (int q = 0; q < kVec / kWide; ++q) store_vec<kWide>(to + kWide * q, pixels.quad[q]);
}

template <int kVec>
__device__ __forceinline__ void store_pixels_global(float* to, const Pixels<kVec>& pixels) {
  constexpr int kWide = Pixels<kVec>::kWide;
#pragma unroll
  for (int q = 0; q < kVec / kWide; ++q) store_global<kWide>(to + kWide * q, pixels.quad[q]);
}

// Each pixel to its nearest level, where there are any: one branch for all of them.
template <int kVec>
__device__ __forceinline__ void to_levels(Pixels<kVec>& pixels, const Levels& levels) {
  if (levels.count == 0.0f) return;
#pragma unroll
  for (int j = 0; j < kVec; ++j) pixels[j] = to_level(pixels[j], levels);
}

}  // namespace ard::cuda
