#include "folding/fold.h"

#include <algorithm>
#include <vector>

#include "common/simd.h"

namespace ard::cpu {
namespace {

template <typename OutT>
ARD_HD void scale_all(const float* __restrict from, OutT* __restrict to, float scale,
                      int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = fold_weight<OutT>(scale, from[i]);
}

ARD_CLONES void scale_row(const float* from, float* to, float scale, int64_t count) {
  scale_all(from, to, scale, count);
}

ARD_CLONES void scale_row(const float* from, f16* to, float scale, int64_t count) {
  scale_all(from, to, scale, count);
}

ARD_CLONES void scale_row(const float* from, bf16* to, float scale, int64_t count) {
  scale_all(from, to, scale, count);
}

// [inner, spatial] to [spatial, inner].
ARD_CLONES void transpose(const float* __restrict from, float* __restrict to, int64_t inner,
                          int64_t spatial) {
  for (int64_t s = 0; s < spatial; ++s) {
    for (int64_t i = 0; i < inner; ++i) to[s * inner + i] = from[i * spatial + s];
  }
}

// One output channel of a layer that has a weight.
template <typename OutT>
void fold_row(const FoldLayer& layer, OutT* to, int64_t channel, float scale,
              std::vector<float>& buffer) {
  const int64_t count = int64_t(layer.inner) * layer.spatial;
  const float* from = layer.weight + channel * count;
  if (layer.spatial > 1) {
    if (int64_t(buffer.size()) < count) buffer.resize(size_t(count));
    transpose(from, buffer.data(), layer.inner, layer.spatial);
    from = buffer.data();
  }
  scale_row(from, to + layer.weight_at + channel * count, scale, count);
}

}  // namespace

void fold_batch_norm(const FoldParams& p, Dtype dtype, int64_t begin, int64_t end) {
  std::vector<float> buffer;
  int64_t before = 0;  // work of the layers so far
  for (int64_t l = 0; l < p.count && before < end; ++l) {
    const FoldLayer& layer = p.layers[l];
    const int64_t each = channel_work(layer);
    const auto first_from = [&](int64_t work) {
      return std::clamp<int64_t>((work - before + each - 1) / each, 0, layer.channels);
    };
    const int64_t last = first_from(end);
    for (int64_t c = first_from(std::max(begin, before)); c < last; ++c) {
      const float scale = fold_scale(layer, c);
      fold_channel(layer, c, scale, p.affine);
      if (!layer.weight) continue;
      for_dtype(dtype, [&](auto example) {
        fold_row(layer, static_cast<decltype(example)*>(p.weights), c, scale, buffer);
      });
    }
    before += layer.channels * each;
  }
}

}  // namespace ard::cpu
