// Batch norm in eval mode as a factor and a summand of each channel, in float. Correctly rounded
// operations only: the same bits on CPU and GPU. The factor is rounded four times (torch's own
// eval-mode norm on a CPU, which takes the reciprocal of the root first, five times), the folded
// weight once more, and to a half type once more again.
#pragma once

#include "common/half.h"

namespace ard {

// O output channels.
struct FoldLayer {
  const float* weight;  // [O, inner, spatial] in memory order, or null for a norm alone
  const float* bias;    // [O] of the convolution, or null
  const float* gamma;   // [O] or null for 1
  const float* beta;    // [O] or null for 0
  const float* mean;    // [O], or null without a norm
  const float* var;     // [O], or null without a norm
  int32_t weight_at;    // first element of [O, spatial, inner] among the folded weights
  int32_t scale_at;     // of [O] among scales and shifts; norm alone
  int32_t shift_at;     // of [O] there
  int32_t channels;     // O
  int32_t inner;        // of one output channel; O * inner * spatial < 2^31
  int32_t spatial;      // 1 where weight and folded weight have one memory order
  float eps;
};

struct FoldParams {
  const FoldLayer* layers;  // on the host
  int64_t count;
  void* weights;  // of the folded dtype
  float* affine;  // scales and shifts
};

// gamma / sqrt(var + eps); 1 without a norm.
ARD_HD float fold_scale(const FoldLayer& layer, int64_t channel) {
  if (!layer.var) return 1.0f;
  const float root = sqrt_rn(add_rn(layer.var[channel], layer.eps));
  return div_rn(layer.gamma ? layer.gamma[channel] : 1.0f, root);
}

// beta + scale * (bias - mean); the bias without a norm.
ARD_HD float fold_shift(const FoldLayer& layer, int64_t channel, float scale) {
  const float bias = layer.bias ? layer.bias[channel] : 0.0f;
  if (!layer.mean) return bias;
  const float centred = mul_rn(scale, add_rn(bias, -layer.mean[channel]));
  return add_rn(layer.beta ? layer.beta[channel] : 0.0f, centred);
}

// What is written once for each channel.
ARD_HD void fold_channel(const FoldLayer& layer, int64_t channel, float scale, float* affine) {
  affine[layer.shift_at + channel] = fold_shift(layer, channel, scale);
  if (!layer.weight) affine[layer.scale_at + channel] = scale;
}

template <typename OutT>
ARD_HD OutT fold_weight(float scale, float weight) {
  return from_float<OutT>(mul_rn(scale, weight));
}

namespace cpu {

inline int64_t channel_work(const FoldLayer& layer) {
  return (layer.weight ? int64_t(layer.inner) * layer.spatial : 0) + 1;
}

// Work of all layers together: an element a weight, one more a channel.
inline int64_t fold_work(const FoldParams& p) {
  int64_t work = 0;
  for (int64_t l = 0; l < p.count; ++l) work += p.layers[l].channels * channel_work(p.layers[l]);
  return work;
}

// The channels whose first element of work is in [begin, end).
void fold_batch_norm(const FoldParams& p, Dtype dtype, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

void launch_fold_batch_norm(const FoldParams& p, Dtype dtype, Stream stream);

}  // namespace cuda

}  // namespace ard
