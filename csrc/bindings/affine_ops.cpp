// affine_relu and its backward pass on CPU tensors.
#include <algorithm>

#include "bindings/affine_pack.h"
#include "cpu/affine.h"

namespace ard {
namespace {

// Parts of whole blocks, in parallel.
template <typename Part>
void in_parts(int64_t numel, const Part& part) {
  constexpr int64_t kBlock = cpu::kAffineBlock;
  torch::stable::parallel_for(
      0, (numel + kBlock - 1) / kBlock, (1 << 15) / kBlock,
      [&](int64_t begin, int64_t end) { part(begin * kBlock, std::min(end * kBlock, numel)); });
}

void run(AffineReluParams& p, const Tensor& x, Tensor& mask) {
  if (mask.numel() > 0) p.mask = static_cast<uint8_t*>(mask.data_ptr());
  in_parts(p.numel,
           [&](int64_t begin, int64_t end) { cpu::affine_relu(p, dtype_tag(x), begin, end); });
}

Tensor affine_relu_in_place_cpu(Tensor x, std::optional<Tensor> scale, std::optional<Tensor> shift,
                                std::optional<Tensor> residual, bool relu, bool mask) {
  AffineReluParams p = pack_affine_relu_(x, scale, shift, residual, relu, mask);
  Tensor bits = empty_mask(x, mask);
  run(p, x, bits);
  return bits;
}

std::tuple<Tensor, Tensor> affine_relu_cpu(const Tensor x, std::optional<Tensor> scale,
                                           std::optional<Tensor> shift,
                                           std::optional<Tensor> residual, bool relu, bool mask) {
  AffineReluParams p = pack_affine_relu(x, scale, shift, residual, relu, mask);
  Tensor y = empty_with_layout_of(x), bits = empty_mask(x, mask);
  p.y = y.data_ptr();
  run(p, x, bits);
  return {y, bits};
}

Tensor affine_relu_backward_cpu(const Tensor grad, std::optional<Tensor> mask,
                                std::optional<Tensor> scale) {
  AffineReluBackwardParams p = pack_affine_relu_backward(grad, mask, scale);
  Tensor out = empty_with_layout_of(grad);
  p.out = out.data_ptr();
  in_parts(p.numel, [&](int64_t begin, int64_t end) {
    cpu::affine_relu_backward(p, dtype_tag(grad), begin, end);
  });
  return out;
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("affine_relu_", TORCH_BOX(&ard::affine_relu_in_place_cpu));
  m.impl("affine_relu", TORCH_BOX(&ard::affine_relu_cpu));
  m.impl("affine_relu_backward", TORCH_BOX(&ard::affine_relu_backward_cpu));
}
