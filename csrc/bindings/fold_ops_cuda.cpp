// The folding of batch norms on CUDA tensors.
#include "bindings/cuda_scope.h"
#include "bindings/fold_pack.h"
#include "cuda/fold_launch.h"

namespace ard {
namespace {

void fold_batch_norm_cuda(Tensor weights, Tensor affine,
                          const std::vector<std::optional<Tensor>> tensors,
                          const std::vector<double> eps, const std::vector<int64_t> places) {
  const Scope scope(weights);
  std::vector<FoldLayer> layers;
  const FoldParams p = pack_fold({weights, affine, tensors, eps, places}, layers);
  cuda::launch_fold_batch_norm(p, dtype_tag(weights), scope.stream());
  scope.check_launch();
}

}  // namespace
}  // namespace ard

ARD_CUDA_IMPLEMENTATIONS(m) {
  m.impl("fold_batch_norm_", TORCH_BOX(&ard::fold_batch_norm_cuda));
}
