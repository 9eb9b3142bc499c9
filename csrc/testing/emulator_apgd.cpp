#include "testing/emulator_arrays.h"
// After the headers of Python and the library, whose attributes have the names of CUDA's.
#include "testing/apgd_on_host.h"

namespace ard::emu {
namespace {

void py_apgd_step(const py::array& x_adv, const py::array& x_prev, const py::array& x_best,
                  const py::array& grad_best, const py::array& x_fooled, const py::array& state,
                  const py::array& state_out, const std::optional<py::array>& grad,
                  const std::string& grad_dtype, const py::array& x, const py::array& loss_rows,
                  const py::array& correct, const std::optional<py::array>& eps_per_sample,
                  int64_t batch, float eps, bool first, int64_t window, double rho, double momentum,
                  float lower, float upper, bool l2, int cluster, int threads, bool cached) {
  ApgdParams p{};
  const int64_t numel = x_adv.size();
  p.x_adv = data_of<float>(x_adv, "x_adv", numel);
  p.x_prev = data_of<float>(x_prev, "x_prev", numel);
  p.x_best = data_of<float>(x_best, "x_best", numel);
  p.x_fooled = data_of<float>(x_fooled, "x_fooled", numel);
  p.x = data_of<float>(x, "x", numel);
  constexpr int64_t kFields = sizeof(ApgdRecord) / sizeof(float);
  p.state = data_of<float>(state, "state", kFields * batch);
  p.state_out = data_of<float>(state_out, "state_out", kFields * batch);
  p.loss_rows = data_of<float>(loss_rows, "loss_rows", batch);
  p.correct = data_of<bool>(correct, "correct", batch);
  p.eps_per_sample = data_or_null<float>(eps_per_sample, "eps_per_sample", batch);
  p.batch = batch;
  p.sample_numel = batch ? numel / batch : 0;
  p.eps = eps;
  p.most_increases = static_cast<float>(rho * static_cast<double>(window));
  p.momentum = static_cast<float>(first ? 1.0 : momentum);
  p.one_minus_momentum = static_cast<float>(first ? 0.0 : 1.0 - momentum);
  p.lower = lower;
  p.upper = upper;
  p.first = first;
  p.checkpoint = window > 0;
  with_dtype(grad_dtype, [&](auto type) {
    using T = decltype(type);
    p.grad_best = float_data<T>(grad_best, "grad_best", numel);
    p.grad = grad ? float_data<T>(*grad, "grad", numel) : nullptr;
    if (!p.grad) {
      apgd_finish(p);
    } else if (!l2) {
      apgd_linf_step<T>(p);
    } else {
      // A cluster of 0 blocks asks for the launcher's own plan.
      apgd_l2_step<T>(p, cluster ? apgd_l2_plan<T>(p, cluster, threads, cached)
                                 : cuda::plan_apgd_l2_step(p, sizeof(T), kSampleDevice));
    }
  });
}

}  // namespace

void bind_apgd(py::module_& m) {
  using py::arg;
  m.def("apgd_step_", &py_apgd_step, py::kw_only(), arg("x_adv"), arg("x_prev"), arg("x_best"),
        arg("grad_best"), arg("x_fooled"), arg("state"), arg("state_out"), arg("grad"),
        arg("grad_dtype"), arg("x"), arg("loss_rows"), arg("correct"), arg("eps_per_sample"),
        arg("batch"), arg("eps"), arg("first"), arg("window"), arg("rho"), arg("momentum"),
        arg("lower"), arg("upper"), arg("l2"), arg("cluster"), arg("threads"), arg("cached"));
}

}  // namespace ard::emu
