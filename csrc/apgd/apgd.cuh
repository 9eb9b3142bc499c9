// What both norms of Auto-PGD share on a GPU.
#pragma once

#include "apgd/apgd.h"
#include "common/launch.h"
#include "common/vectors.cuh"

namespace ard::cuda {

// Every tensor of pixels or gradients on a 16-byte boundary, at every sample.
inline bool apgd_aligned(const ApgdParams& p, int64_t vec) {
  return p.sample_numel % vec == 0 && aligned16(p.x_adv) && aligned16(p.x_prev) &&
         aligned16(p.x_best) && aligned16(p.grad_best) && aligned16(p.x_fooled) &&
         aligned16(p.grad) && aligned16(p.x);
}

// Where the step starts, and the gradient there.
template <typename T, int kVec>
struct ApgdPoint {
  Pixels<kVec> current;
  Vec<T, kVec> grad;
};

// Does what the decision says for kVec pixels at element i of the batch.
template <typename T, int kVec>
__device__ __forceinline__ ApgdPoint<T, kVec> apgd_select(const ApgdParams& p,
                                                          const ApgdDecision& d, int64_t i) {
  const T* grads = static_cast<const T*>(d.from_best ? p.grad_best : p.grad);
  const Pixels<kVec> evaluated = load_pixels<kVec>(p.x_adv + i);
  ApgdPoint<T, kVec> out;
  out.grad = load_vec<kVec>(grads + i);
  out.current = d.from_best ? load_pixels<kVec>(p.x_best + i) : evaluated;
  if (d.keep_fooled) store_pixels_global<kVec>(p.x_fooled + i, evaluated);
  if (d.improved) {
    store_pixels_global<kVec>(p.x_best + i, evaluated);
    store_global<kVec>(static_cast<T*>(p.grad_best) + i, out.grad);
  }
  if (d.from_best) store_pixels_global<kVec>(p.x_adv + i, out.current);
  return out;
}

}  // namespace ard::cuda
