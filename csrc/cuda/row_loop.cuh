// How the threads of a group share a row of logits.
#pragma once

#include "cuda/vec.cuh"

// Visits the vectors of a row that belong to this thread. They are always the same ones, so what a
// thread staged it may read back without a barrier. `group` and `kVec` are those of the caller.
#define ARD_FOR_VECTORS(c, classes) \
  for (int64_t c = int64_t(group.rank()) * kVec; c < classes; c += int64_t(group.size()) * kVec)

namespace ard::cuda {

template <int kVec, bool kCached, typename T>
__device__ __forceinline__ Vec<T, kVec> row_vec(const T* global, const T* staged, int64_t c) {
  return load_vec<kVec>(kCached ? staged + c : global + c);
}

}  // namespace ard::cuda
