#include <vector>

#include "testing/emulator_arrays.h"
// The CUDA vocabulary comes after the system's headers, which use some of its words.
#include "testing/fold_on_host.h"

namespace ard::emu {
namespace {

using OptionalArray = std::optional<py::array>;
// weight, bias, gamma, beta, mean and var; channels, inner and spatial; the three places; eps
using LayerArrays = std::tuple<std::vector<OptionalArray>, std::vector<int32_t>, double>;

void py_fold_batch_norm(const py::array& weights, const std::string& dtype, const py::array& affine,
                        const std::vector<LayerArrays>& arrays) {
  std::vector<FoldLayer> layers;
  for (const auto& [tensors, numbers, eps] : arrays) {
    FoldLayer layer{};
    layer.channels = numbers.at(0);
    layer.inner = numbers.at(1);
    layer.spatial = numbers.at(2);
    layer.weight_at = numbers.at(3);
    layer.scale_at = numbers.at(4);
    layer.shift_at = numbers.at(5);
    layer.eps = static_cast<float>(eps);
    const int64_t o = layer.channels, numel = o * layer.inner * layer.spatial;
    layer.weight = data_or_null<float>(tensors.at(0), "weight", numel);
    layer.bias = data_or_null<float>(tensors.at(1), "bias", o);
    layer.gamma = data_or_null<float>(tensors.at(2), "gamma", o);
    layer.beta = data_or_null<float>(tensors.at(3), "beta", o);
    layer.mean = data_or_null<float>(tensors.at(4), "mean", o);
    layer.var = data_or_null<float>(tensors.at(5), "var", o);
    layers.push_back(layer);
  }
  with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
    fold_batch_norm<T>({layers.data(), int64_t(layers.size()),
                        float_data<T>(weights, "weights", weights.size()),
                        data_of<float>(affine, "affine", affine.size())});
  });
}

}  // namespace

void bind_fold(py::module_& m) {
  using py::arg;
  m.def("fold_batch_norm_", &py_fold_batch_norm, py::kw_only(), arg("weights"), arg("dtype"),
        arg("affine"), arg("layers"));
}

}  // namespace ard::emu
