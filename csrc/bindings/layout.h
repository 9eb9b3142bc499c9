// Memory orders of the tensors with channels, and new tensors in the order of another.
#pragma once

#include "bindings/checks.h"

namespace ard {

// Within a sample, in memory: 1 for contiguous, C for channels-last order.
inline int64_t innermost_channels(const Tensor& x, const char* name) {
  int64_t expected = 1;
  bool contiguous = true;
  for (int64_t d = x.dim() - 1; d >= 1; --d) {
    contiguous = contiguous && (x.size(d) == 1 || x.stride(d) == expected);
    expected *= x.size(d);
  }
  if (contiguous) return 1;
  const int64_t channels = x.size(1);
  bool channels_last = x.dim() >= 3 && (channels == 1 || x.stride(1) == 1);
  expected = channels;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    channels_last = channels_last && (x.size(d) == 1 || x.stride(d) == expected);
    expected *= x.size(d);
  }
  ARD_CHECK(channels_last, name, " must be contiguous or channels_last within a sample, got shape ",
            shape_of(x), " in another memory order");
  return channels;
}

// A new tensor with the sizes and strides of x.
inline Tensor empty_with_layout_of(const Tensor& x) {
  int32_t dtype, device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(x.get(), &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(x.dim(), x.sizes().data(),
                                                         x.strides().data(), dtype, device_type,
                                                         x.get_device_index(), &handle));
  return Tensor(handle);
}

}  // namespace ard
