// Pixels that one thread handles together.
#pragma once

#include "cuda/vec.cuh"

namespace ard::cuda {

// As many as the elements of a gradient vector: floats in 16-byte vectors, or one.
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

}  // namespace ard::cuda
