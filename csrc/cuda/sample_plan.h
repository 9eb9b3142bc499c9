// How many threads in how many blocks own one sample, and whether it stays in shared memory.
// Torch-free, shared by the CUDA launchers and the host emulator.
#pragma once

#include "core/config.h"

namespace ard::cuda {

constexpr int kMaxClusterBlocks = 8;  // the most that every device with clusters can run
constexpr int kMaxSampleSums = 4;     // at once

// What the threads of a sample tell one another; twice, for two sums in a row.
struct SampleScratch {
  double of_warps[2][kMaxSampleSums][32];
  double of_blocks[2][kMaxSampleSums][kMaxClusterBlocks];
};
static_assert(sizeof(SampleScratch) % 16 == 0, "what is staged behind it needs 16-byte alignment");

// Vectors of one block; the last blocks of a cluster may have fewer, or none.
ARD_HD int64_t share_size(int64_t vectors, int64_t blocks) {
  return (vectors + blocks - 1) / blocks;
}

// What a launch needs to know of the device.
struct SampleDevice {
  int64_t max_shared;  // bytes that one block may have
  int64_t multiprocessors;
  bool clusters;
};

struct SamplePlan {
  bool cached;           // the share of a block stays in shared memory, else it is read twice
  int cluster;           // blocks a sample
  int threads;           // of a block
  int64_t blocks;        // of the grid
  int64_t shared_bytes;  // of a block, SampleScratch included
};

// Bytes of an array of so many bytes, with the next one aligned.
ARD_HD int64_t padded16(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// staged_bytes(vectors): what a share of so many vectors takes in shared memory.
template <typename Bytes>
SamplePlan plan_samples(const SampleDevice& device, int64_t batch, int64_t vectors,
                        Bytes staged_bytes) {
  constexpr int64_t kScratch = int64_t(sizeof(SampleScratch));
  constexpr int64_t kFewVectors = 256;  // not worth sharing among blocks
  const auto needed = [&](int cluster) {
    return kScratch + staged_bytes(share_size(vectors, cluster));
  };
  SamplePlan plan{};
  plan.cluster = 1;
  // More blocks for samples too large for one, and for batches that would leave the device idle.
  while (device.clusters && plan.cluster < kMaxClusterBlocks &&
         share_size(vectors, 2 * plan.cluster) >= kFewVectors &&
         (needed(plan.cluster) > device.max_shared ||
          2 * plan.cluster * batch <= device.multiprocessors)) {
    plan.cluster *= 2;
  }
  plan.cached = needed(plan.cluster) <= device.max_shared;
  plan.shared_bytes = plan.cached ? needed(plan.cluster) : kScratch;
  plan.blocks = batch * plan.cluster;
  // About two vectors a thread.
  plan.threads = 32;
  while (plan.threads < 1024 && 2 * plan.threads < share_size(vectors, plan.cluster))
    plan.threads *= 2;
  return plan;
}

}  // namespace ard::cuda
