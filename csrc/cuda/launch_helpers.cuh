// Small helpers of the launchers.
#pragma once

#include <stdexcept>
#include <string>

#include "core/half.h"
#include "core/params.h"

namespace ard::cuda {

inline unsigned grid_size(int64_t blocks) {
  if (blocks > 0x7fffffff) {
    throw std::runtime_error("ard_fast: tensor too large for one launch: " +
                             std::to_string(blocks) + " blocks, at most 2^31 - 1");
  }
  return unsigned(blocks);
}

// Calls body with a value of the C++ type of the dtype.
template <typename Body>
void for_dtype(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::f32:
      return body(float{});
    case Dtype::f16:
      return body(f16{});
    case Dtype::bf16:
      return body(bf16{});
  }
}

}  // namespace ard::cuda
