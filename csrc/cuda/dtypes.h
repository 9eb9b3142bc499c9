// From a dtype to the C++ type of a kernel.
#pragma once

#include "core/half.h"
#include "core/params.h"

namespace ard::cuda {

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
