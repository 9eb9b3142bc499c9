// How CPU loops get wide vectors in a wheel for any machine: each loop function is compiled for
// several x86-64 levels and the loader picks one (function multiversioning); elsewhere the baseline
// (NEON on 64-bit Arm) is already a vector one. Loops are written so that the compiler vectorises
// them: straight-line bodies, and kLanes independent accumulators instead of one.
#pragma once

#include "common/math.h"

// The highest x86-64 level that loops are compiled for: 4 (AVX-512), 3 (AVX2) or 1 (the baseline).
// A lower one than 4, by CXXFLAGS, is for tests of what other processors do, and for sanitizers:
// the resolvers of clones run before a sanitizer's runtime is ready.
#if !(defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
      __GNUC__ >= 12)
#undef ARD_CPU_LEVEL
#define ARD_CPU_LEVEL 1
#elif !defined(ARD_CPU_LEVEL)
#define ARD_CPU_LEVEL 4
#endif

#if ARD_CPU_LEVEL == 4
#define ARD_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif ARD_CPU_LEVEL == 3
#define ARD_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#elif ARD_CPU_LEVEL == 1
#define ARD_CLONES
#else
#error "ARD_CPU_LEVEL must be 4, 3 or 1"
#endif

// In front of a loop over lanes. Iterations do not touch one another's data, so no run-time test
// for overlap is needed (it cost 40 % of the loss); and gcc must not unroll the loop before it has
// tried to vectorise it (it made the search for the largest logit scalar, 15 % of the loss).
#if defined(__clang__)
#define ARD_LANES _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define ARD_LANES _Pragma("GCC unroll 1") _Pragma("GCC ivdep")
#else
#define ARD_LANES
#endif

namespace ard::cpu {

constexpr int kLanes = 16;

// chosen ? a : b. Written so where b is the lane's own value, gcc would store a under a mask, after
// a branch on it.
ARD_HD int lane_pick(bool chosen, int a, int b) {
  const int mask = chosen ? -1 : 0;
  return (a & mask) | (b & ~mask);
}

ARD_HD float lane_pick(bool chosen, float a, float b) {
  return bits_to_float(uint32_t(lane_pick(chosen, int(float_to_bits(a)), int(float_to_bits(b)))));
}

// In pairs: a chain of 15 additions takes longer than the vectors of a short row.
template <typename T>
ARD_HD double lane_sum(const T* lanes) {
  double sums[kLanes / 2];
  for (int l = 0; l < kLanes / 2; ++l) sums[l] = double(lanes[l]) + lanes[l + kLanes / 2];
  for (int width = kLanes / 4; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return sums[0];
}

// Which clones the loader picked.
inline const char* simd_level() {
#if ARD_CPU_LEVEL >= 4
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
#endif
#if ARD_CPU_LEVEL >= 3
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
#endif
  return "baseline";
}

}  // namespace ard::cpu
