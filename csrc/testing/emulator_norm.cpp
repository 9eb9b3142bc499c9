#include "testing/emulator_arrays.h"
#include "testing/norm_on_host.h"

namespace ard::emu {
namespace {

/// What both steps have in common.
NormStepParams step_params(const py::array& x_adv, const py::array& x,
                           const std::optional<py::array>& step_size_per_sample,
                           const std::optional<py::array>& eps_per_sample, int64_t batch,
                           float step_size, float eps, float direction, float lower, float upper) {
  NormStepParams p{};
  p.batch = x_adv.size() ? batch : 0;
  p.sample_numel = p.batch ? x_adv.size() / batch : 0;
  p.x_adv = data_of<float>(x_adv, "x_adv", x_adv.size());
  p.x = data_of<float>(x, "x", x_adv.size());
  p.step_size_per_sample = data_or_null<float>(step_size_per_sample, "step_size_per_sample", batch);
  p.eps_per_sample = data_or_null<float>(eps_per_sample, "eps_per_sample", batch);
  p.step_size = step_size;
  p.eps = eps;
  p.direction = direction;
  p.lower = lower;
  p.upper = upper;
  return p;
}

/// A cluster of 0 blocks asks for the launcher's own plan.
template <typename T>
cuda::NormStepPlan plan_of(const NormStepParams& p, bool mifgsm, int cluster, int threads,
                           bool cached) {
  return cluster ? norm_step_plan<T>(p, mifgsm, cluster, threads, cached)
                 : cuda::plan_norm_step(p, sizeof(T), mifgsm, kSampleDevice);
}

void py_pgd_l2_step(const py::array& x_adv, const py::array& grad, const std::string& grad_dtype,
                    const py::array& x, const std::optional<py::array>& step_size_per_sample,
                    const std::optional<py::array>& eps_per_sample, int64_t batch, float step_size,
                    float eps, float direction, float lower, float upper, int cluster, int threads,
                    bool cached) {
  NormStepParams p = step_params(x_adv, x, step_size_per_sample, eps_per_sample, batch, step_size,
                                 eps, direction, lower, upper);
  with_dtype(grad_dtype, [&](auto type) {
    using T = decltype(type);
    p.grad = float_data<T>(grad, "grad", x_adv.size());
    pgd_l2_step<T>(p, plan_of<T>(p, false, cluster, threads, cached));
  });
}

void py_mifgsm_step(const py::array& x_adv, const py::array& momentum, const py::array& grad,
                    const std::string& grad_dtype, const py::array& x,
                    const std::optional<py::array>& step_size_per_sample,
                    const std::optional<py::array>& eps_per_sample, int64_t batch, float step_size,
                    float eps, float decay, float direction, float lower, float upper, int cluster,
                    int threads, bool cached) {
  NormStepParams p = step_params(x_adv, x, step_size_per_sample, eps_per_sample, batch, step_size,
                                 eps, direction, lower, upper);
  p.momentum = data_of<float>(momentum, "momentum", x_adv.size());
  p.decay = decay;
  with_dtype(grad_dtype, [&](auto type) {
    using T = decltype(type);
    p.grad = float_data<T>(grad, "grad", x_adv.size());
    mifgsm_step<T>(p, plan_of<T>(p, true, cluster, threads, cached));
  });
}

void py_select_best(const py::array& best, const py::array& candidate, const py::array& best_loss,
                    const py::array& loss, const py::array& best_loss_out, bool lower) {
  SelectParams p{};
  p.batch = loss.size();
  p.sample_numel = p.batch ? best.size() / p.batch : 0;
  p.best = data_of<float>(best, "best", best.size());
  p.candidate = data_of<float>(candidate, "candidate", best.size());
  p.best_loss = data_of<float>(best_loss, "best_loss", p.batch);
  p.loss = data_of<float>(loss, "loss", p.batch);
  p.best_loss_out = data_of<float>(best_loss_out, "best_loss_out", p.batch);
  p.lower = lower;
  select_best(p);
}

}  // namespace

void bind_norm(py::module_& m) {
  using py::arg;
  m.def("pgd_l2_step_", &py_pgd_l2_step, py::kw_only(), arg("x_adv"), arg("grad"),
        arg("grad_dtype"), arg("x"), arg("step_size_per_sample"), arg("eps_per_sample"),
        arg("batch"), arg("step_size"), arg("eps"), arg("direction"), arg("lower"), arg("upper"),
        arg("cluster"), arg("threads"), arg("cached"));
  m.def("mifgsm_step_", &py_mifgsm_step, py::kw_only(), arg("x_adv"), arg("momentum"), arg("grad"),
        arg("grad_dtype"), arg("x"), arg("step_size_per_sample"), arg("eps_per_sample"),
        arg("batch"), arg("step_size"), arg("eps"), arg("decay"), arg("direction"), arg("lower"),
        arg("upper"), arg("cluster"), arg("threads"), arg("cached"));
  m.def("select_best_", &py_select_best, py::kw_only(), arg("best"), arg("candidate"),
        arg("best_loss"), arg("loss"), arg("best_loss_out"), arg("lower"));
}

}  // namespace ard::emu
