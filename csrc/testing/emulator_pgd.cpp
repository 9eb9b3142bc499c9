#include "testing/emulator_arrays.h"
#include "testing/pgd_on_host.h"

namespace ard::emu {
namespace {

void py_pgd_linf_step(const py::array& x_adv, const py::array& grad, const std::string& grad_dtype,
                      const py::array& x, const std::optional<py::array>& step_size_per_sample,
                      const std::optional<py::array>& eps_per_sample, int64_t batch,
                      float step_size, float eps, float direction, float lower, float upper) {
  PgdLinfParams p{};
  p.numel = x_adv.size();
  p.sample_numel = batch ? p.numel / batch : 0;
  p.x_adv = data_of<float>(x_adv, "x_adv", p.numel);
  p.x = data_of<float>(x, "x", p.numel);
  p.step_size_per_sample = data_or_null<float>(step_size_per_sample, "step_size_per_sample", batch);
  p.eps_per_sample = data_or_null<float>(eps_per_sample, "eps_per_sample", batch);
  p.step_size = step_size;
  p.eps = eps;
  p.direction = direction;
  p.lower = lower;
  p.upper = upper;
  with_dtype(grad_dtype, [&](auto type) {
    p.grad = float_data<decltype(type)>(grad, "grad", p.numel);
    pgd_linf_step<decltype(type)>(p);
  });
}

void py_random_start(const py::array& out, const py::array& x,
                     const std::optional<py::array>& eps_per_sample, const py::array& seed,
                     const std::optional<py::array>& sample_ids, int64_t batch, int64_t channels,
                     float eps, float std, float lower, float upper, bool normal) {
  RandomStartParams p{};
  p.x = data_of<float>(x, "x", x.size());
  p.out = data_of<float>(out, "out", x.size());
  p.eps_per_sample = data_or_null<float>(eps_per_sample, "eps_per_sample", batch);
  p.seed = data_of<int64_t>(seed, "seed", 1);
  p.sample_ids = data_or_null<int64_t>(sample_ids, "sample_ids", batch);
  p.batch = batch;
  p.sample_numel = batch ? x.size() / batch : 0;
  p.channels = channels;
  p.eps = eps;
  p.std = std;
  p.lower = lower;
  p.upper = upper;
  p.normal = normal;
  random_start(p);
}

}  // namespace

void bind_pgd(py::module_& m) {
  using py::arg;
  m.def("pgd_linf_step_", &py_pgd_linf_step, py::kw_only(), arg("x_adv"), arg("grad"),
        arg("grad_dtype"), arg("x"), arg("step_size_per_sample"), arg("eps_per_sample"),
        arg("batch"), arg("step_size"), arg("eps"), arg("direction"), arg("lower"), arg("upper"));
  m.def("random_start", &py_random_start, py::kw_only(), arg("out"), arg("x"),
        arg("eps_per_sample"), arg("seed"), arg("sample_ids"), arg("batch"), arg("channels"),
        arg("eps"), arg("std"), arg("lower"), arg("upper"), arg("normal"));
}

}  // namespace ard::emu
