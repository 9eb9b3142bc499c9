// N elements moved by one load or store: 16 bytes when N * sizeof(T) is 16.
#pragma once

#include "cuda/platform.cuh"

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

}  // namespace ard::cuda
