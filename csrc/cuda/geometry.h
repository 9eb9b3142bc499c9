// How many blocks of how many threads a kernel is started with.
#pragma once

#include <stdexcept>
#include <string>

#include "core/config.h"

// As the CUDA headers have it, which need not be there: cudaStream_t is CUstream_st*.
struct CUstream_st;

namespace ard::cuda {

using Stream = CUstream_st*;

struct Geometry {
  int64_t blocks;
  int64_t threads;           // of a block
  int64_t shared_bytes = 0;  // dynamic shared memory of a block
  int64_t cluster = 1;       // blocks that run together
};

// Dynamic shared memory from which on a kernel must ask for it: the hardware grants 48 KiB together
// with the kernel's static arrays, and those of every kernel here are far below 16 KiB
// (scripts/check_nvcc.py).
constexpr int64_t kSharedWithoutAsking = 32 * 1024;

// Compute capability, as 10 * major + minor, from which on compiled code can have clusters. A newer
// device that runs older code has none: what the code can is asked of it, not of the device.
constexpr int kClusterCode = 90;

inline unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) {
    throw std::runtime_error("ard_fast: tensor too large for one launch: " +
                             std::to_string(blocks) + " blocks, at most 2^31 - 1");
  }
  return unsigned(blocks);
}

}  // namespace ard::cuda
