// The CUDA implementations: checks, device and stream; the kernels are behind cuda/launch.h.
#include <Python.h>
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "bindings/pack.h"
#include "cuda/launch.h"

namespace ard {
namespace {

// The tensor's device for as long as it lives, and torch's current stream there.
class Scope {
 public:
  explicit Scope(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

void pgd_linf_step_cuda(Tensor x_adv, const Tensor grad, const Tensor x,
                        std::optional<Tensor> step_size_per_sample,
                        std::optional<Tensor> eps_per_sample, double step_size, double eps,
                        bool targeted, double lower, double upper) {
  const PgdLinfParams p = pack_pgd_linf_step(x_adv, grad, x, step_size_per_sample, eps_per_sample,
                                             step_size, eps, targeted, lower, upper);
  const Scope scope(x_adv);
  cuda::launch_pgd_linf_step(p, dtype_tag(grad), scope.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor random_start_cuda(const Tensor x, std::optional<Tensor> eps_per_sample, double eps,
                         const Tensor seed, std::optional<Tensor> sample_ids, bool normal,
                         double std, bool clamp, double lower, double upper) {
  RandomStartParams p =
      pack_random_start(x, eps_per_sample, eps, seed, sample_ids, normal, std, clamp, lower, upper);
  const Scope scope(x);
  Tensor out = empty_with_layout_of(x);
  p.out = static_cast<float*>(out.data_ptr());
  cuda::launch_random_start(p, scope.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

std::tuple<Tensor, Tensor, Tensor> kd_loss_cuda(const Tensor student, const Tensor teacher,
                                                std::optional<Tensor> clean,
                                                std::optional<Tensor> labels, double temperature,
                                                double kl_weight, double ce_weight,
                                                double kl_grad_weight, double ce_grad_weight,
                                                bool reduce, bool with_grad) {
  const Scope scope(student);
  KdOutputs out;
  const KdLossParams p =
      pack_kd_loss(student, teacher, clean, labels, temperature,
                   {kl_weight, ce_weight, kl_grad_weight, ce_grad_weight}, with_grad, out);
  if (!reduce) {
    cuda::launch_kd_loss(p, dtype_tag(student), nullptr, scope.stream());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return {out.loss_rows, out.grad_student, out.grad_clean};
  }
  Tensor total = torch::stable::new_empty(student, {}, ScalarType::Float);
  cuda::launch_kd_loss(p, dtype_tag(student), static_cast<float*>(total.data_ptr()),
                       scope.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {total, out.grad_student, out.grad_clean};
}

void scale_rows_cuda(Tensor grad, const Tensor scale, double factor) {
  check_scale_rows(grad, scale);
  const Scope scope(grad);
  cuda::launch_scale_rows(grad.data_ptr(), dtype_tag(grad), grad.numel(), grad.size(1),
                          static_cast<const float*>(scale.data_ptr()), scale.numel() != 1,
                          float(factor), scope.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CUDA, m) {
  m.impl("pgd_linf_step_", TORCH_BOX(&ard::pgd_linf_step_cuda));
  m.impl("random_start", TORCH_BOX(&ard::random_start_cuda));
  m.impl("kd_loss", TORCH_BOX(&ard::kd_loss_cuda));
  m.impl("scale_rows_", TORCH_BOX(&ard::scale_rows_cuda));
}

// An empty module: importing it runs the registrations above.
PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
