// How CPU loops get wide vectors in a wheel for any machine: each loop function is compiled for
// several x86-64 levels and the loader picks one (function multiversioning); elsewhere the baseline
// (NEON on 64-bit Arm) is already a vector one. Loops are written so that the compiler vectorises
// them: straight-line bodies, and kLanes independent accumulators instead of one.
#pragma once

#include "common/config.h"

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

template <typename T>
ARD_HD double lane_sum(const T* lanes) {
  double sum = 0.0;
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
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
