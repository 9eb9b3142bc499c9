// The steps along a normalised gradient and the selection of the best iterate on CPU tensors.
#include "bindings/norm_pack.h"
#include "cpu/norm_steps.h"

namespace ard {
namespace {

// Samples that one thread takes at a time: enough work to be worth a thread.
int64_t grain(int64_t sample_numel) {
  constexpr int64_t kElements = 1 << 14;
  return sample_numel < kElements ? kElements / (sample_numel ? sample_numel : 1) : 1;
}

void pgd_l2_step_cpu(Tensor x_adv, const Tensor grad, const Tensor x,
                     std::optional<Tensor> step_size_per_sample,
                     std::optional<Tensor> eps_per_sample, double step_size, double eps,
                     bool targeted, double lower, double upper) {
  const NormStepParams p = pack_norm_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                          step_size, eps, targeted, lower, upper);
  const Dtype dtype = dtype_tag(grad);
  torch::stable::parallel_for(0, p.batch, grain(p.sample_numel), [&](int64_t begin, int64_t end) {
    cpu::pgd_l2_step(p, dtype, begin, end);
  });
}

void mifgsm_step_cpu(Tensor x_adv, Tensor momentum, const Tensor grad, const Tensor x,
                     std::optional<Tensor> step_size_per_sample,
                     std::optional<Tensor> eps_per_sample, double step_size, double eps,
                     double decay, bool targeted, double lower, double upper) {
  const NormStepParams p =
      pack_mifgsm_step(x_adv, momentum, grad, x, step_size_per_sample, eps_per_sample, step_size,
                       eps, decay, targeted, lower, upper);
  const Dtype dtype = dtype_tag(grad);
  torch::stable::parallel_for(0, p.batch, grain(p.sample_numel), [&](int64_t begin, int64_t end) {
    cpu::mifgsm_step(p, dtype, begin, end);
  });
}

void select_best_cpu(Tensor best, const Tensor candidate, const Tensor best_loss, const Tensor loss,
                     Tensor best_loss_out, bool lower) {
  const SelectParams p = pack_select_best(best, candidate, best_loss, loss, best_loss_out, lower);
  torch::stable::parallel_for(0, p.batch, grain(p.sample_numel),
                              [&](int64_t begin, int64_t end) { cpu::select_best(p, begin, end); });
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("pgd_l2_step_", TORCH_BOX(&ard::pgd_l2_step_cpu));
  m.impl("mifgsm_step_", TORCH_BOX(&ard::mifgsm_step_cpu));
  m.impl("select_best_", TORCH_BOX(&ard::select_best_cpu));
}
