// affine_relu and its backward pass on CUDA tensors.
#include "bindings/affine_pack.h"
#include "bindings/cuda_scope.h"
#include "cuda/affine_launch.h"

namespace ard {
namespace {

void run(AffineReluParams& p, const Tensor& x, Tensor& mask, const Scope& scope) {
  if (mask.numel() > 0) p.mask = static_cast<uint8_t*>(mask.data_ptr());
  cuda::launch_affine_relu(p, dtype_tag(x), scope.stream());
  scope.check_launch();
}

Tensor affine_relu_in_place_cuda(Tensor x, std::optional<Tensor> scale, std::optional<Tensor> shift,
                                 std::optional<Tensor> residual, bool relu, bool mask) {
  AffineReluParams p = pack_affine_relu_(x, scale, shift, residual, relu, mask);
  const Scope scope(x);
  Tensor bits = empty_mask(x, mask);
  run(p, x, bits, scope);
  return bits;
}

std::tuple<Tensor, Tensor> affine_relu_cuda(const Tensor x, std::optional<Tensor> scale,
                                            std::optional<Tensor> shift,
                                            std::optional<Tensor> residual, bool relu, bool mask) {
  AffineReluParams p = pack_affine_relu(x, scale, shift, residual, relu, mask);
  const Scope scope(x);
  Tensor y = empty_with_layout_of(x), bits = empty_mask(x, mask);
  p.y = y.data_ptr();
  run(p, x, bits, scope);
  return {y, bits};
}

Tensor affine_relu_backward_cuda(const Tensor grad, std::optional<Tensor> mask,
                                 std::optional<Tensor> scale) {
  AffineReluBackwardParams p = pack_affine_relu_backward(grad, mask, scale);
  const Scope scope(grad);
  Tensor out = empty_with_layout_of(grad);
  p.out = out.data_ptr();
  cuda::launch_affine_relu_backward(p, dtype_tag(grad), scope.stream());
  scope.check_launch();
  return out;
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("affine_relu_", TORCH_BOX(&ard::affine_relu_in_place_cuda));
  m.impl("affine_relu", TORCH_BOX(&ard::affine_relu_cuda));
  m.impl("affine_relu_backward", TORCH_BOX(&ard::affine_relu_backward_cuda));
}
