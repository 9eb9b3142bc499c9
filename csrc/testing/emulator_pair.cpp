#include "testing/emulator_arrays.h"
#include "testing/pair_on_host.h"

namespace ard::emu {
namespace {

void py_pair_loss(const py::array& adv, const py::array& clean, const py::array& labels,
                  const std::optional<py::array>& weight, const std::string& dtype, bool mart,
                  const py::array& loss_rows, const std::optional<py::array>& grad_adv,
                  const std::optional<py::array>& grad_clean, float kl_weight, float ce_weight,
                  float kl_grad_weight, float ce_grad_weight, const std::string& variant) {
  if (adv.ndim() != 2) throw std::invalid_argument("adv: expected [B, C]");
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t rows = adv.shape(0), classes = adv.shape(1);
    PairLossParams p{};
    p.adv = matrix<T>(adv, "adv", rows, classes, &p.adv_stride);
    p.clean = matrix<T>(clean, "clean", rows, classes, &p.clean_stride);
    p.labels = data_of<int64_t>(labels, "labels", rows);
    p.weight = data_or_null<float>(weight, "weight", rows);
    p.loss_rows = data_of<float>(loss_rows, "loss_rows", rows);
    p.grad_adv = gradient<T>(grad_adv, "grad_adv", rows, classes);
    p.grad_clean = gradient<T>(grad_clean, "grad_clean", rows, classes);
    p.batch = rows;
    p.classes = classes;
    p.kl_weight = kl_weight;
    p.ce_weight = ce_weight;
    p.kl_grad_weight = kl_grad_weight;
    p.ce_grad_weight = ce_grad_weight;
    p.mart = mart;
    const cuda::RowPlan automatic = pair_loss_plan<T>(p);
    if (variant == "auto" || (variant == "warp" && automatic.warp)) {
      pair_loss<T>(p, automatic);
    } else if (variant == "block") {
      pair_loss<T>(p, pair_loss_block_plan<T>(p, 64, true));
    } else if (variant == "block_uncached") {
      pair_loss<T>(p, pair_loss_block_plan<T>(p, 64, false));
    } else {
      throw std::invalid_argument("variant: expected auto, warp (up to " +
                                  std::to_string(cuda::kWarpRowClasses) +
                                  " classes), block or block_uncached, got " + variant);
    }
  });
}

}  // namespace

void bind_pair(py::module_& m) {
  using py::arg;
  m.def("pair_loss", &py_pair_loss, py::kw_only(), arg("adv"), arg("clean"), arg("labels"),
        arg("weight"), arg("dtype"), arg("mart"), arg("loss_rows"), arg("grad_adv"),
        arg("grad_clean"), arg("kl_weight"), arg("ce_weight"), arg("kl_grad_weight"),
        arg("ce_grad_weight"), arg("variant"));
}

}  // namespace ard::emu
