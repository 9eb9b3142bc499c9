// The folding of batch norms on CPU tensors.
#include "bindings/fold_pack.h"
#include "cpu/fold.h"

namespace ard {
namespace {

void fold_batch_norm_cpu(Tensor weights, Tensor affine,
                         const std::vector<std::optional<Tensor>> tensors,
                         const std::vector<double> eps, const std::vector<int64_t> places) {
  std::vector<FoldLayer> layers;
  const FoldParams p = pack_fold({weights, affine, tensors, eps, places}, layers);
  const Dtype dtype = dtype_tag(weights);
  torch::stable::parallel_for(0, cpu::fold_work(p), 1 << 15, [&](int64_t begin, int64_t end) {
    cpu::fold_batch_norm(p, dtype, begin, end);
  });
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("fold_batch_norm_", TORCH_BOX(&ard::fold_batch_norm_cpu));
}
