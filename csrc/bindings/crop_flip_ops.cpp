// The augmentation on CPU tensors.
#include <algorithm>

#include "bindings/crop_flip_pack.h"
#include "cpu/crop_flip.h"

namespace ard {
namespace {

void check_in_range(const int64_t* values, const char* name, int64_t batch, int64_t end) {
  for (int64_t b = 0; values && b < batch; ++b) {
    ARD_CHECK(values[b] >= 0 && values[b] < end, name, " must be in [0, ", end, "), got ",
              values[b], " at position ", b);
  }
}

std::tuple<Tensor, Tensor> crop_flip_cpu(const Tensor images, const Tensor positions,
                                         std::optional<Tensor> seed, std::optional<Tensor> ids,
                                         std::optional<Tensor> views, int64_t padding, bool flip,
                                         int64_t levels, bool channels_last) {
  CropFlipOutputs out;
  const CropFlipParams p = pack_crop_flip(images, positions, seed, ids, views, padding, flip,
                                          levels, channels_last, out);
  check_in_range(p.positions, "positions", p.batch, p.count);
  check_in_range(p.given, "views", p.batch, view_count(p.padding));
  const int64_t line_numel = int64_t(p.width) * (channels_last ? p.channels : 1);
  const int64_t grain = std::max<int64_t>(1, (1 << 15) / line_numel);
  torch::stable::parallel_for(0, p.batch * cpu::crop_flip_lines(p), grain,
                              [&](int64_t begin, int64_t end) { cpu::crop_flip(p, begin, end); });
  return {out.x, out.view};
}

}  // namespace
}  // namespace ard

STABLE_TORCH_LIBRARY_IMPL(ard_fast, CPU, m) { m.impl("crop_flip", TORCH_BOX(&ard::crop_flip_cpu)); }
