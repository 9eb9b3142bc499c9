#include "testing/emulator_arrays.h"
// The CUDA vocabulary comes after the system's headers, which use some of its words.
#include "testing/attack_gradient_on_host.h"

namespace ard::emu {
namespace {

void py_attack_gradient(const py::array& logits, const py::array& labels,
                        const std::optional<py::array>& target_classes, const std::string& dtype,
                        const py::array& grad, const std::optional<py::array>& loss_rows,
                        const std::optional<py::array>& correct,
                        const std::optional<py::array>& grad_scale, int loss, float kappa,
                        const std::string& variant) {
  if (logits.ndim() != 2) throw std::invalid_argument("logits: expected [B, C]");
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t rows = logits.shape(0), classes = logits.shape(1);
    AttackGradientParams p{};
    p.logits = matrix<T>(logits, "logits", rows, classes, &p.logits_stride);
    p.labels = data_of<int64_t>(labels, "labels", rows);
    p.target_classes = data_or_null<int64_t>(target_classes, "target_classes", rows);
    p.grad = gradient<T>(grad, "grad", rows, classes);
    p.loss_rows = data_or_null<float>(loss_rows, "loss_rows", rows);
    p.correct = data_or_null<bool>(correct, "correct", rows);
    p.grad_scale = data_or_null<float>(grad_scale, "grad_scale", rows);
    p.batch = rows;
    p.classes = classes;
    p.loss = static_cast<AttackLoss>(loss);
    p.kappa = kappa;
    const cuda::RowPlan automatic = attack_gradient_plan<T>(p);
    if (variant == "auto" || (variant == "warp" && automatic.warp)) {
      attack_gradient<T>(p, automatic);
    } else if (variant == "block") {
      attack_gradient<T>(p, attack_gradient_block_plan<T>(p, 64, true));
    } else if (variant == "block_uncached") {
      attack_gradient<T>(p, attack_gradient_block_plan<T>(p, 64, false));
    } else {
      throw std::invalid_argument("variant: expected auto, warp (up to " +
                                  std::to_string(cuda::kWarpRowClasses) +
                                  " classes), block or block_uncached, got " + variant);
    }
  });
}

}  // namespace

void bind_attack_gradient(py::module_& m) {
  using py::arg;
  m.def("attack_gradient", &py_attack_gradient, py::kw_only(), arg("logits"), arg("labels"),
        arg("target_classes"), arg("dtype"), arg("grad"), arg("loss_rows"), arg("correct"),
        arg("grad_scale"), arg("loss"), arg("kappa"), arg("variant"));
}

}  // namespace ard::emu
