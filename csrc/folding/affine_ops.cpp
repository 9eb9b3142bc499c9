#include <algorithm>

#include "common/operators.h"
#include "folding/affine.h"

namespace ard {
namespace {

// The number of channels and how many elements of one are in a row in memory.
struct ChannelOrder {
  int64_t channels, inner;
};

ChannelOrder channel_order(const Tensor& t, const char* name) {
  check_float_dtype(t, name);
  ARD_CHECK(t.dim() >= 2, name, " must have shape [B, C, ...], got ", shape_of(t));
  check_dense(t, name);
  check_batch_outermost(t, name, "its channels");
  if (t.numel() == 0) return {t.size(1), 1};
  const int64_t channels = t.size(1);
  const bool last = innermost_channels(t, name) != 1;
  return {channels, last ? 1 : t.numel() / (t.size(0) * channels)};
}

void check_per_channel(const std::optional<Tensor>& t, const char* name, const Tensor& x,
                       const char* x_name) {
  if (!t) return;
  check_vector(*t, name, x.size(1), "one entry a channel", ScalarType::Float, "float32", x, x_name);
}

int64_t mask_bytes(const Tensor& x) { return (x.numel() + 7) / 8; }

Tensor empty_mask(const Tensor& x, bool wanted) {
  return new_vector(x, wanted ? mask_bytes(x) : 0, ScalarType::Byte);
}

// y and the mask are left to the caller, who makes them once all is checked.
AffineReluParams pack_affine_relu(const Tensor& x,                        // [B, C, ...]
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

AffineReluParams pack_affine_relu_(Tensor& x,  // [B, C, ...], written
                                   const std::optional<Tensor>& scale,
                                   const std::optional<Tensor>& shift,
                                   const std::optional<Tensor>& residual, bool relu, bool mask) {
  AffineReluParams p = pack_affine_relu(x, scale, shift, residual, relu, mask);
  if (scale) check_apart(x, "x", *scale, "scale");
  if (shift) check_apart(x, "x", *shift, "shift");
  if (residual) check_no_partial_overlap(x, "x", *residual, "residual");
  p.y = x.data_ptr();
  return p;
}

// As pack_affine_relu; `out` is left to the caller.
AffineReluBackwardParams pack_affine_relu_backward(
    const Tensor& grad,                  // [B, C, ...]
    const std::optional<Tensor>& mask,   // [ceil(n / 8)]
    const std::optional<Tensor>& scale)  // [C]
{
  const ChannelOrder order = channel_order(grad, "grad");
  if (mask) {
    check_vector(*mask, "mask", mask_bytes(grad), "one bit for each element of grad",
                 ScalarType::Byte, "uint8", grad, "grad");
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

// Runs on parts of whole blocks of elements, in parallel.
template <typename Gpu, typename Cpu>
void run_affine(const Tensor& x, const Gpu& gpu, const Cpu& cpu) {
  constexpr int64_t kBlock = cpu::kAffineBlock;
  const int64_t numel = x.numel();
  run(x, gpu, (numel + kBlock - 1) / kBlock, (1 << 15) / kBlock,
      [&](auto begin, auto end) { cpu(begin * kBlock, std::min<int64_t>(end * kBlock, numel)); });
}

void run_affine_relu(AffineReluParams& p, const Tensor& x, Tensor& mask) {
  if (mask.numel() > 0) p.mask = static_cast<uint8_t*>(mask.data_ptr());
  const Dtype dtype = dtype_tag(x);
  run_affine(
      x, [&](auto stream) { cuda::launch_affine_relu(p, dtype, stream); },
      [&](auto begin, auto end) { cpu::affine_relu(p, dtype, begin, end); });
}

Tensor affine_relu_(Tensor x, std::optional<Tensor> scale, std::optional<Tensor> shift,
                    std::optional<Tensor> residual, bool relu, bool mask) {
  AffineReluParams p = pack_affine_relu_(x, scale, shift, residual, relu, mask);
  Tensor bits = empty_mask(x, mask);
  run_affine_relu(p, x, bits);
  return bits;
}

std::tuple<Tensor, Tensor> affine_relu(const Tensor x, std::optional<Tensor> scale,
                                       std::optional<Tensor> shift, std::optional<Tensor> residual,
                                       bool relu, bool mask) {
  AffineReluParams p = pack_affine_relu(x, scale, shift, residual, relu, mask);
  Tensor y = empty_with_layout_of(x), bits = empty_mask(x, mask);
  p.y = y.data_ptr();
  run_affine_relu(p, x, bits);
  return {y, bits};
}

Tensor affine_relu_backward(const Tensor grad, std::optional<Tensor> mask,
                            std::optional<Tensor> scale) {
  AffineReluBackwardParams p = pack_affine_relu_backward(grad, mask, scale);
  Tensor out = empty_with_layout_of(grad);
  p.out = out.data_ptr();
  const Dtype dtype = dtype_tag(grad);
  run_affine(
      grad, [&](auto stream) { cuda::launch_affine_relu_backward(p, dtype, stream); },
      [&](auto begin, auto end) { cpu::affine_relu_backward(p, dtype, begin, end); });
  return out;
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) {
  m.impl("affine_relu_", TORCH_BOX(&ard::affine_relu_));
  m.impl("affine_relu", TORCH_BOX(&ard::affine_relu));
  m.impl("affine_relu_backward", TORCH_BOX(&ard::affine_relu_backward));
}
