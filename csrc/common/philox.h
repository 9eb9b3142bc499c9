// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). Integer arithmetic only: the same bits everywhere.
#pragma once

#include "common/config.h"

namespace ard {

struct PhiloxBlock {
  uint32_t v[4];
};

// The 4 words of random bits at `counter` (128 bits, least significant word first) under `key`.
ARD_HD PhiloxBlock philox4x32_10(const PhiloxBlock& counter, uint64_t key) {
  uint32_t c0 = counter.v[0], c1 = counter.v[1], c2 = counter.v[2], c3 = counter.v[3];
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * c2;
    const uint32_t n0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
    c1 = uint32_t(product1);
    c3 = uint32_t(product0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return PhiloxBlock{{c0, c1, c2, c3}};
}

// Random words for elements 4 * group ... 4 * group + 3 of sample `sample_id`: what makes a
// sample's noise independent of the batch it is in, of its place there, and of the memory layout.
ARD_HD PhiloxBlock philox_for_group(uint64_t seed, uint64_t sample_id, uint64_t group) {
  const PhiloxBlock counter{
      {uint32_t(group), uint32_t(group >> 32), uint32_t(sample_id), uint32_t(sample_id >> 32)}};
  return philox4x32_10(counter, seed);
}

}  // namespace ard
