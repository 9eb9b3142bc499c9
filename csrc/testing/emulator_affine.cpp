#include "testing/emulator_arrays.h"
// The CUDA vocabulary comes after the system's headers, which use some of its words.
#include "testing/affine_on_host.h"

namespace ard::emu {
namespace {

void py_affine_relu(const py::array& x, const py::array& y, const std::string& dtype,
                    const std::optional<py::array>& scale, const std::optional<py::array>& shift,
                    const std::optional<py::array>& residual, const std::optional<py::array>& mask,
                    int64_t channels, int64_t inner, bool relu) {
  AffineReluParams p{};
  p.numel = x.size();
  p.channels = channels;
  p.inner = inner;
  p.relu = relu;
  p.scale = data_or_null<float>(scale, "scale", channels);
  p.shift = data_or_null<float>(shift, "shift", channels);
  p.mask = data_or_null<uint8_t>(mask, "mask", (p.numel + 7) / 8);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    p.x = float_data<T>(x, "x", p.numel);
    p.y = float_data<T>(y, "y", p.numel);
    if (residual) p.residual = float_data<T>(*residual, "residual", p.numel);
    affine_relu<T>(p);
  });
}

void py_affine_relu_backward(const py::array& grad, const py::array& out, const std::string& dtype,
                             const std::optional<py::array>& mask,
                             const std::optional<py::array>& scale, int64_t channels,
                             int64_t inner) {
  AffineReluBackwardParams p{};
  p.numel = grad.size();
  p.channels = channels;
  p.inner = inner;
  p.scale = data_or_null<float>(scale, "scale", channels);
  p.mask = data_or_null<uint8_t>(mask, "mask", (p.numel + 7) / 8);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    p.grad = float_data<T>(grad, "grad", p.numel);
    p.out = float_data<T>(out, "out", p.numel);
    affine_relu_backward<T>(p);
  });
}

}  // namespace

void bind_affine(py::module_& m) {
  using py::arg;
  m.def("affine_relu", &py_affine_relu, py::kw_only(), arg("x"), arg("y"), arg("dtype"),
        arg("scale"), arg("shift"), arg("residual"), arg("mask"), arg("channels"), arg("inner"),
        arg("relu"));
  m.def("affine_relu_backward", &py_affine_relu_backward, py::kw_only(), arg("grad"), arg("out"),
        arg("dtype"), arg("mask"), arg("scale"), arg("channels"), arg("inner"));
}

}  // namespace ard::emu
