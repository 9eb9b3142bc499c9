// The one schema block of the package, and the CPU implementations.
#include <Python.h>

#include <algorithm>

#include "bindings/pack.h"
#include "cpu/kernels.h"

namespace ard {
namespace {

void pgd_linf_step_cpu(Tensor x_adv, const Tensor grad, const Tensor x,
                       std::optional<Tensor> step_size_per_sample,
                       std::optional<Tensor> eps_per_sample, double step_size, double eps,
                       bool targeted, double lower, double upper) {
  const PgdLinfParams p = pack_pgd_linf_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                             step_size, eps, targeted, lower, upper);
  const Dtype dtype = dtype_tag(grad);
  torch::stable::parallel_for(0, p.numel, 1 << 15, [&](int64_t begin, int64_t end) {
    cpu::pgd_linf_step(p, dtype, begin, end);
  });
}

Tensor random_start_cpu(const Tensor x, std::optional<Tensor> eps_per_sample, double eps,
                        const Tensor seed, std::optional<Tensor> sample_ids, bool normal,
                        double std, bool clamp, double lower, double upper) {
  RandomStartParams p =
      pack_random_start(x, eps_per_sample, eps, seed, sample_ids, normal, std, clamp, lower, upper);
  Tensor out = empty_with_layout_of(x);
  p.out = static_cast<float*>(out.data_ptr());
  torch::stable::parallel_for(
      0, p.batch * ((p.sample_numel + 3) / 4), 1 << 12,
      [&](int64_t begin, int64_t end) { cpu::random_start(p, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> kd_loss_cpu(const Tensor student, const Tensor teacher,
                                               std::optional<Tensor> clean,
                                               std::optional<Tensor> labels, double temperature,
                                               double kl_weight, double ce_weight,
                                               double kl_grad_weight, double ce_grad_weight,
                                               bool reduce, bool with_grad) {
  KdOutputs out;
  const KdLossParams p =
      pack_kd_loss(student, teacher, clean, labels, temperature,
                   {kl_weight, ce_weight, kl_grad_weight, ce_grad_weight}, with_grad, out);
  for (int64_t i = 0; p.labels && i < p.batch; ++i) {
    ARD_CHECK(p.labels[i] >= 0 && p.labels[i] < p.classes, "labels must be in [0, ", p.classes,
              "), got ", p.labels[i], " at position ", i);
  }
  const Dtype dtype = dtype_tag(student);
  const int64_t grain = std::max<int64_t>(1, (1 << 12) / p.classes);
  torch::stable::parallel_for(
      0, p.batch, grain, [&](int64_t begin, int64_t end) { cpu::kd_loss(p, dtype, begin, end); });
  if (!reduce) return {out.loss_rows, out.grad_student, out.grad_clean};
  Tensor total = torch::stable::new_empty(student, {}, ScalarType::Float);
  double sum = 0.0;
  for (int64_t i = 0; i < p.batch; ++i) sum += p.loss_rows[i];
  *static_cast<float*>(total.data_ptr()) = float(sum);
  return {total, out.grad_student, out.grad_clean};
}

void scale_rows_cpu(Tensor grad, const Tensor scale, double factor) {
  check_scale_rows(grad, scale);
  const int64_t classes = grad.size(1);
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, classes));
  torch::stable::parallel_for(0, grad.size(0), grain, [&](int64_t begin, int64_t end) {
    cpu::scale_rows(grad.data_ptr(), dtype_tag(grad), classes,
                    static_cast<const float*>(scale.data_ptr()), scale.numel() != 1, float(factor),
                    begin, end);
  });
}

std::string simd_level() { return cpu::simd_level(); }

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY(ard_fast, m) {
  m.def(
      "pgd_linf_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor? step_size_per_sample, "
      "Tensor? eps_per_sample, float step_size, float eps, bool targeted, float lower, "
      "float upper) -> ()");
  m.def(
      "random_start(Tensor x, Tensor? eps_per_sample, float eps, Tensor seed, Tensor? sample_ids, "
      "bool normal, float std, bool clamp, float lower, float upper) -> Tensor");
  // Row loss: kl_weight * KL + ce_weight * CE; `reduce` sums the rows. The gradients come unscaled
  // by any incoming one, with their own weights; they are empty without `with_grad`.
  m.def(
      "kd_loss(Tensor student, Tensor teacher, Tensor? clean, Tensor? labels, float temperature, "
      "float kl_weight, float ce_weight, float kl_grad_weight, float ce_grad_weight, bool reduce, "
      "bool with_grad) -> (Tensor loss, Tensor grad_student, Tensor grad_clean)");
  // grad[i] *= factor * scale[i], leaving rows untouched where the product is 1.
  m.def("scale_rows_(Tensor(a!) grad, Tensor scale, float factor) -> ()");
  m.def("simd_level() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) {
  m.impl("pgd_linf_step_", TORCH_BOX(&ard::pgd_linf_step_cpu));
  m.impl("random_start", TORCH_BOX(&ard::random_start_cpu));
  m.impl("kd_loss", TORCH_BOX(&ard::kd_loss_cpu));
  m.impl("scale_rows_", TORCH_BOX(&ard::scale_rows_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&ard::simd_level));
}

// An empty module: importing it runs the registrations above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
