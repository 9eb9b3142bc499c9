// affine_relu and its backward pass: from checked tensors to their params structs, the same for CPU
// and CUDA.
#pragma once

#include <array>

#include "bindings/layout.h"
#include "core/affine_params.h"

namespace ard {

// The number of channels and how many elements of one are in a row in memory.
struct ChannelOrder {
  int64_t channels, inner;
};

inline ChannelOrder channel_order(const Tensor& t, const char* name) {
  check_float_dtype(t, name);
  ARD_CHECK(t.dim() >= 2, name, " must have shape [B, C, ...], got ", shape_of(t));
  check_dense(t, name);
  check_batch_outermost(t, name, "its channels");
  if (t.numel() == 0) return {t.size(1), 1};
  const int64_t channels = t.size(1);
  const bool last = innermost_channels(t, name) != 1;
  return {channels, last ? 1 : t.numel() / (t.size(0) * channels)};
}

inline void check_per_channel(const std::optional<Tensor>& t, const char* name, const Tensor& x,
                              const char* x_name) {
  if (!t) return;
  ARD_CHECK(t->dim() == 1 && t->size(0) == x.size(1), name, " must have shape [", x.size(1),
            "], one entry a channel, got ", shape_of(*t));
  check_dtype(*t, name, ScalarType::Float, "float32");
  check_device(*t, name, x, x_name);
  ARD_CHECK(t->size(0) < 2 || t->stride(0) == 1, name, " must be contiguous");
}

inline int64_t mask_bytes(const Tensor& x) { return (x.numel() + 7) / 8; }

inline Tensor empty_mask(const Tensor& x, bool wanted) {
  const std::array<int64_t, 1> sizes{wanted ? mask_bytes(x) : 0};
  return torch::stable::new_empty(x, {sizes.data(), sizes.size()}, ScalarType::Byte);
}

// y and the mask are left to the caller, who makes them once all is checked.
inline AffineReluParams pack_affine_relu(const Tensor& x,                        // [B, C, ...]
                                         const std::optional<Tensor>& scale,     // [C]
                                         const std::optional<Tensor>& shift,     // [C]
                                         const std::optional<Tensor>& residual,  // [B, C, ...]
                                         bool relu, bool mask) {
  const ChannelOrder order = channel_order(x, "x");
  check_per_channel(scale, "scale", x, "x");
  check_per_channel(shift, "shift", x, "x");
  if (residual) {
    ARD_CHECK(residual->scalar_type() == x.scalar_type(), "residual must have the dtype of x (",
              dtype_of(x), "), got ", dtype_of(*residual));
    check_like(*residual, "residual", x, "x");
    check_same_layout(*residual, "residual", x, "x");
  }
  ARD_CHECK(relu || !mask, "mask must be false without relu: there is nothing to mask");

  AffineReluParams p{};
  p.x = x.data_ptr();
  p.residual = residual ? residual->data_ptr() : nullptr;
  p.scale = data_or_null<float>(scale);
  p.shift = data_or_null<float>(shift);
  p.numel = x.numel();
  p.channels = order.channels;
  p.inner = order.inner;
  p.relu = relu;
  return p;
}

inline AffineReluParams pack_affine_relu_(Tensor& x,  // [B, C, ...], written
                                          const std::optional<Tensor>& scale,
                                          const std::optional<Tensor>& shift,
                                          const std::optional<Tensor>& residual, bool relu,
                                          bool mask) {
  AffineReluParams p = pack_affine_relu(x, scale, shift, residual, relu, mask);
  if (scale) check_apart(x, "x", *scale, "scale");
  if (shift) check_apart(x, "x", *shift, "shift");
  if (residual) check_no_partial_overlap(x, "x", *residual, "residual");
  p.y = x.data_ptr();
  return p;
}

// As pack_affine_relu; `out` is left to the caller.
inline AffineReluBackwardParams pack_affine_relu_backward(
    const Tensor& grad,                  // [B, C, ...]
    const std::optional<Tensor>& mask,   // [ceil(n / 8)]
    const std::optional<Tensor>& scale)  // [C]
{
  const ChannelOrder order = channel_order(grad, "grad");
  if (mask) {
    check_dtype(*mask, "mask", ScalarType::Byte, "uint8");
    ARD_CHECK(mask->dim() == 1 && mask->size(0) == mask_bytes(grad), "mask must have shape [",
              mask_bytes(grad), "], one bit for each element of grad, got ", shape_of(*mask));
    check_device(*mask, "mask", grad, "grad");
    ARD_CHECK(mask->size(0) < 2 || mask->stride(0) == 1, "mask must be contiguous");
  }
  check_per_channel(scale, "scale", grad, "grad");

  AffineReluBackwardParams p{};
  p.grad = grad.data_ptr();
  p.mask = data_or_null<uint8_t>(mask);
  p.scale = data_or_null<float>(scale);
  p.numel = grad.numel();
  p.channels = order.channels;
  p.inner = order.inner;
  return p;
}

}  // namespace ard
