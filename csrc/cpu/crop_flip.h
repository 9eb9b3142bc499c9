// The augmentation's loop, over a part of the batch's lines; called from several threads at once.
#pragma once

#include "core/crop_flip_params.h"

namespace ard::cpu {

// A line is what one thread writes in one go: an image row of one channel, or of all channels when
// the output is channels_last.
inline int64_t crop_flip_lines(const CropFlipParams& p) {
  return int64_t(p.height) * (p.channels_last ? 1 : p.channels);
}

// Lines [begin, end) of the whole batch, in memory order. Every position and given view must exist.
void crop_flip(const CropFlipParams& p, int64_t begin, int64_t end);

}  // namespace ard::cpu
