// Launch geometry of affine_relu and its backward pass, shared by the CUDA launchers and the host
// emulator.
#pragma once

#include <stdexcept>

#include "core/affine_params.h"
#include "cuda/launch_plan.h"

namespace ard::cuda {

constexpr int kAffineThreads = 256;
constexpr int kAffineVectors = 2;  // of 16 bytes, a thread

// How the 16-byte vectors lie among the channels.
enum class Spread {
  one,  // each in one channel, or there are no coefficients
  row,  // each over consecutive channels, whose coefficients are 16-byte vectors too
  any,
};

struct AffinePlan {
  bool vector;  // else a thread takes the 8 elements of a byte of the mask, one by one
  Spread spread;
  uint32_t run;     // one: vectors of a channel in a row; row: vectors of all channels
  uint32_t blocks;  // each of kAffineThreads
};

inline bool fits(const void* pointer) { return pointer == nullptr || aligned16(pointer); }

// aligned: whether all tensors are; the coefficients may be null.
inline AffinePlan plan_affine(int64_t numel, int64_t channels, int64_t inner, const float* scale,
                              const float* shift, bool aligned, int item_size) {
  const int64_t vec = 16 / item_size;
  AffinePlan plan{};
  // The kernels count vectors and places in a channel in 32 bits: 64-bit division is slow there.
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
  if ((!scale && !shift) || (inner > 1 && inner % vec == 0)) {
    plan.spread = Spread::one;
    plan.run = uint32_t(inner % vec == 0 ? inner / vec : 1);
  } else if (inner == 1 && channels % vec == 0 && fits(scale) && fits(shift)) {
    plan.spread = Spread::row;
    plan.run = uint32_t(channels / vec);
  } else {
    plan.spread = Spread::any;
    plan.run = 1;
  }
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

}  // namespace ard::cuda
