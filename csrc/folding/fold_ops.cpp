#include <ostream>
#include <vector>

#include "common/operators.h"
#include "folding/fold.h"

namespace ard {
namespace {

struct FoldInputs {
  const Tensor& weights;
  const Tensor& affine;
  // Of each layer: weight, bias, gamma, beta, mean, var.
  const std::vector<std::optional<Tensor>>& tensors;
  const std::vector<double>& eps;
  // Of each layer: where its weight, its scale and its shift begin in weights and affine; -1 for
  // what it does not have.
  const std::vector<int64_t>& places;
};

constexpr int kFoldTensors = 6, kFoldPlaces = 3;

// One of a layer's tensors, for messages.
struct FoldName {
  const char* what;
  size_t layer;
  friend std::ostream& operator<<(std::ostream& out, const FoldName& name) {
    return out << name.what << " of layer " << name.layer;
  }
};

// A contiguous float32 vector, the one among a layer's tensors that `name` says.
void check_fold_vector(const std::optional<Tensor>& t, const FoldName& name, int64_t channels,
                       const FoldInputs& in) {
  if (!t) return;
  check_dtype(*t, name, ScalarType::Float, "float32");
  ARD_CHECK(t->dim() == 1 && t->size(0) == channels, name, " must have shape [", channels,
            "], one entry an output channel, got ", shape_of(*t));
  ARD_CHECK(channels < 2 || t->stride(0) == 1, name, " must be contiguous");
  check_device(*t, name, in.weights, "weights");
  check_apart(in.affine, "affine", *t, name);
  check_apart(in.weights, "weights", *t, name);
}

// Whether the elements of [O, I, H, W] follow one another in the order of these strides.
bool has_strides(const Tensor& t, int64_t o, int64_t i, int64_t h, int64_t w) {
  const int64_t expected[] = {o, i, h, w};
  for (int64_t d = 0; d < 4; ++d) {
    if (t.size(d) != 1 && t.stride(d) != expected[d]) return false;
  }
  return true;
}

// Size and memory order of a convolution's weight.
void pack_fold_weight(const Tensor& weight, const FoldName& name, const FoldInputs& in,
                      FoldLayer& layer) {
  check_dtype(weight, name, ScalarType::Float, "float32");
  ARD_CHECK(weight.dim() == 4 && weight.numel() > 0, name,
            " must have shape [O, I, H, W] without empty dimensions, got ", shape_of(weight));
  ARD_CHECK(weight.numel() < int64_t(1) << 31, name, " must have fewer than 2^31 elements, got ",
            weight.numel());
  const int64_t i = weight.size(1), h = weight.size(2), w = weight.size(3);
  const int64_t each = i * h * w;
  const bool last = has_strides(weight, each, 1, w * i, i);
  ARD_CHECK(last || has_strides(weight, each, h * w, w, 1), name,
            " must be contiguous or channels_last in memory");
  check_device(weight, name, in.weights, "weights");
  check_apart(in.affine, "affine", weight, name);
  check_apart(in.weights, "weights", weight, name);
  layer.weight = static_cast<const float*>(weight.data_ptr());
  layer.channels = int32_t(weight.size(0));
  layer.inner = int32_t(last ? each : i);
  layer.spatial = int32_t(last ? 1 : h * w);
}

// A place for `count` elements behind what has been placed so far. Folded weights are written in
// vectors of 4.
int32_t take_place(int64_t place, int64_t count, const Tensor& out, const FoldName& name,
                   int64_t alignment, int64_t& end) {
  ARD_CHECK(place >= end && place % alignment == 0 && place <= out.numel() - count, name,
            " must have a place for ", count, " elements from ", end, " to ", out.numel(),
            " that is a multiple of ", alignment, ", got ", place);
  end = place + count;
  return int32_t(place);
}

void check_fold_output(const Tensor& t, const char* name) {
  ARD_CHECK(t.dim() == 1 && (t.numel() < 2 || t.stride(0) == 1), name,
            " must be a contiguous vector, got shape ", shape_of(t));
  ARD_CHECK(t.numel() < int64_t(1) << 31, name, " must have fewer than 2^31 elements, got ",
            t.numel());
  ARD_CHECK(reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0, name,
            " must begin on a 16-byte boundary");
}

// `layers` keeps what the result points to.
FoldParams pack_fold(const FoldInputs& in, std::vector<FoldLayer>& layers) {
  check_float_dtype(in.weights, "weights");
  check_fold_output(in.weights, "weights");
  check_dtype(in.affine, "affine", ScalarType::Float, "float32");
  check_fold_output(in.affine, "affine");
  check_device(in.affine, "affine", in.weights, "weights");
  check_apart(in.weights, "weights", in.affine, "affine");
  const size_t count = in.eps.size();
  ARD_CHECK(in.tensors.size() == count * kFoldTensors, "tensors must have ", kFoldTensors,
            " entries a layer, ", count * kFoldTensors, " for the ", count, " of eps, got ",
            in.tensors.size());
  ARD_CHECK(in.places.size() == count * kFoldPlaces, "places must have ", kFoldPlaces,
            " entries a layer, ", count * kFoldPlaces, " for the ", count, " of eps, got ",
            in.places.size());
  layers.resize(count);
  int64_t weights_end = 0, affine_end = 0;
  for (size_t l = 0; l < count; ++l) {
    const auto name = [l](const char* what) { return FoldName{what, l}; };
    const std::optional<Tensor>* t = in.tensors.data() + l * kFoldTensors;
    const std::optional<Tensor>&weight = t[0], &mean = t[4], &var = t[5];
    const int64_t* place = in.places.data() + l * kFoldPlaces;
    FoldLayer layer{};
    ARD_CHECK(mean.has_value() == var.has_value(), name("mean"), " and ", name("var"),
              " must be given together");
    ARD_CHECK(var || !(t[2] || t[3]), name("gamma"), " and ", name("beta"),
              " must not be given without mean and var");
    ARD_CHECK(weight || var, "layer ", l, " must have a weight, or mean and var, or all of them");
    ARD_CHECK(weight || !t[1], name("bias"), " must not be given without a weight");
    if (weight) {
      pack_fold_weight(*weight, name("weight"), in, layer);
      layer.weight_at =
          take_place(place[0], weight->numel(), in.weights, name("weight"), 4, weights_end);
    } else {
      layer.channels = int32_t(var->numel() < int64_t(1) << 31 ? var->numel() : 0);
    }
    const char* names[] = {"bias", "gamma", "beta", "mean", "var"};
    for (int j = 0; j < 5; ++j) check_fold_vector(t[1 + j], name(names[j]), layer.channels, in);
    if (!weight) {
      layer.scale_at =
          take_place(place[1], layer.channels, in.affine, name("scale"), 1, affine_end);
    }
    layer.shift_at = take_place(place[2], layer.channels, in.affine, name("shift"), 1, affine_end);
    layer.bias = data_or_null<float>(t[1]);
    layer.gamma = data_or_null<float>(t[2]);
    layer.beta = data_or_null<float>(t[3]);
    layer.mean = data_or_null<float>(mean);
    layer.var = data_or_null<float>(var);
    layer.eps = float(in.eps[l]);
    layers[l] = layer;
  }
  return {layers.data(), int64_t(count), in.weights.data_ptr(),
          static_cast<float*>(in.affine.data_ptr())};
}

void fold_batch_norm_(Tensor weights, Tensor affine,
                      const std::vector<std::optional<Tensor>> tensors,
                      const std::vector<double> eps, const std::vector<int64_t> places) {
  std::vector<FoldLayer> layers;
  const FoldParams p = pack_fold({weights, affine, tensors, eps, places}, layers);
  const Dtype dtype = dtype_tag(weights);
  run(
      weights, [&](auto stream) { cuda::launch_fold_batch_norm(p, dtype, stream); },
      cpu::fold_work(p), 1 << 15,
      [&](auto begin, auto end) { cpu::fold_batch_norm(p, dtype, begin, end); });
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) { m.impl("fold_batch_norm_", TORCH_BOX(&ard::fold_batch_norm_)); }
