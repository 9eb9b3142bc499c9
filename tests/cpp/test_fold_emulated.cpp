// The CUDA kernel of the folding on the emulator against the CPU loop, on buffers that end where
// their data end: for the sanitizers.
#include <algorithm>
#include <memory>
#include <vector>

#include "buffers.h"
#include "check.h"
#include "cpu/fold.h"
#include "testing/fold_on_host.h"

namespace ard::test {
namespace {

struct Shape {
  int32_t channels, inner, spatial;  // inner 0: a norm alone
};

// Layers of the given shapes and all their memory.
struct Network {
  std::vector<FoldLayer> layers;
  std::vector<Buffer<float>> memory;
  std::size_t weights = 0, affine = 0;

  const float* vector(std::size_t count, std::size_t offset) {
    memory.emplace_back(count, offset);
    fill(memory.back(), 2.0f);
    return memory.back().data();
  }

  void add(const Shape& shape, std::size_t offset, unsigned missing) {
    const auto channels = static_cast<std::size_t>(shape.channels);
    FoldLayer layer{};
    layer.channels = shape.channels;
    layer.inner = shape.inner;
    layer.spatial = shape.spatial;
    layer.eps = 0.1f;
    if (shape.inner) {
      const std::size_t numel = channels * static_cast<std::size_t>(shape.inner) *
                                static_cast<std::size_t>(shape.spatial);
      layer.weight = vector(numel, offset);
      if (!(missing & 1)) layer.bias = vector(channels, offset);
      layer.weight_at = static_cast<int32_t>(weights);
      weights += (numel + 3) / 4 * 4;
    } else {
      layer.scale_at = static_cast<int32_t>(affine);
      affine += channels;
    }
    if (!shape.inner || !(missing & 8)) {
      layer.mean = vector(channels, offset);
      layer.var = vector(channels, offset);
      if (!(missing & 2)) layer.gamma = vector(channels, offset);
      if (!(missing & 4)) layer.beta = vector(channels, offset);
    }
    layer.shift_at = static_cast<int32_t>(affine);
    affine += channels;
    layers.push_back(layer);
  }
};

template <typename T>
bool same_values(Buffer<T>& a, Buffer<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float x = to_float(a[i]), y = to_float(b[i]);
    if (float_to_bits(x) != float_to_bits(y) && !(x != x && y != y)) return false;
  }
  return true;
}

// The CPU loop over work cut into stretches, as among threads.
void on_cpu(const FoldParams& p, Dtype dtype, int64_t stretch) {
  const int64_t work = cpu::fold_work(p);
  for (int64_t begin = 0; begin < work; begin += stretch) {
    cpu::fold_batch_norm(p, dtype, begin, std::min(work, begin + stretch));
  }
}

template <typename T>
void test_network(const Network& network, int64_t stretch) {
  const int64_t count = static_cast<int64_t>(network.layers.size());
  Buffer<T> expected(network.weights, 0), weights(network.weights, 0);
  Buffer<float> expected_affine(network.affine, 0), affine(network.affine, 0);
  // The gaps between weights are nobody's.
  for (std::size_t i = 0; i < network.weights; ++i) {
    expected[i] = weights[i] = from_float<T>(7.0f);
  }
  fill(affine, 1.0f);
  on_cpu({network.layers.data(), count, expected.data(), expected_affine.data()}, dtype_of<T>(),
         stretch);
  emu::fold_batch_norm<T>({network.layers.data(), count, weights.data(), affine.data()});
  CHECK(same_values(weights, expected));
  CHECK(same_values(affine, expected_affine));
}

}  // namespace
}  // namespace ard::test

int main() {
  using namespace ard::test;
  // One weight; channels shorter than a vector, of odd length, beyond a block; spatial ones; more
  // channels than threads; norms alone.
  const Shape shapes[] = {{1, 1, 1},   {5, 3, 1}, {7, 9, 1},   {3, 2051, 1},
                          {600, 2, 1}, {4, 5, 9}, {3, 300, 9}, {2, 16, 25},
                          {300, 1, 2}, {1, 0, 0}, {1030, 0, 0}};
  for (const std::size_t offset : {std::size_t(0), std::size_t(1)}) {
    Network all;
    for (unsigned missing = 0; missing < 16; ++missing) {
      Network network;
      for (const Shape& shape : shapes) network.add(shape, offset, missing);
      test_network<float>(network, 1000);
      test_network<ard::f16>(network, 1 << 20);
      test_network<ard::bf16>(network, 17);
      for (const Shape& shape : shapes) all.add(shape, offset, missing);  // several tables
    }
    test_network<float>(all, 1 << 15);
  }
  test_network<float>(Network{}, 1);
  return finish("test_fold_emulated");
}
