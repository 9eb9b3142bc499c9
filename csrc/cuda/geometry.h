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

// What a block may have of dynamic shared memory without asking.
constexpr int64_t kSharedWithoutAsking = 48 * 1024;

inline unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) {
    throw std::runtime_error("ard_fast: tensor too large for one launch: " +
                             std::to_string(blocks) + " blocks, at most 2^31 - 1");
  }
  return unsigned(blocks);
}

}  // namespace ard::cuda
