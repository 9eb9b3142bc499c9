// Batch norm in eval mode as a factor and a summand of each channel, in float. Correctly rounded
// operations only: the same bits on CPU and GPU. The factor is rounded four times (torch's own
// eval-mode norm on a CPU, which takes the reciprocal of the root first, five times), the folded
// weight once more, and to a half type once more again.
#pragma once

#include "core/fold_params.h"
#include "core/half.h"

namespace ard {

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

}  // namespace ard
