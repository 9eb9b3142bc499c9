#include "images/crop_flip.h"

#include <algorithm>
#include <vector>

#include "common/simd.h"

namespace ard::cpu {
namespace {

ARD_CLONES void convert(const uint8_t* __restrict from, float* __restrict to, int64_t count,
                        Levels levels) {
  for (int64_t i = 0; i < count; ++i) to[i] = level_value(float(from[i]), levels);
}

// Eight bytes at a time, the last ones perhaps twice. Rows are short and of any length, which a
// vector loop is bad at.
void reverse(const uint8_t* __restrict from, uint8_t* __restrict to, int64_t count) {
  const auto eight = [=](int64_t i) {
    uint64_t word;
    memcpy(&word, from + count - 8 - i, 8);
    word = __builtin_bswap64(word);
    memcpy(to + i, &word, 8);
  };
  if (count < 8) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[count - 1 - i];
    return;
  }
  for (int64_t i = 0; i < count - 8; i += 8) eight(i);
  eight(count - 8);
}

// Pixels of `channels` planes that are `plane` apart, channel innermost. Three have their own loop
// for speed.
ARD_CLONES void interleave(const uint8_t* __restrict from, int64_t plane, int64_t channels,
                           uint8_t* __restrict to, int64_t count, bool reversed) {
  const int64_t first = reversed ? count - 1 : 0, step = reversed ? -1 : 1;
  if (channels == 3) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t pixel = first + step * i;
      to[3 * i] = from[pixel];
      to[3 * i + 1] = from[plane + pixel];
      to[3 * i + 2] = from[2 * plane + pixel];
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < count; ++i) to[channels * i + c] = from[c * plane + first + step * i];
  }
}

// Asks for an image's first bytes from memory, while the image before it is worked on: images are
// taken in random order, which no processor foresees (a tenth of the time of a CIFAR batch).
void prefetch(const uint8_t* image, int64_t numel) {
  constexpr int64_t kLine = 64, kMost = 4096;  // bytes
  for (int64_t i = 0; i < std::min(numel, kMost); i += kLine) __builtin_prefetch(image + i);
}

// Bytes that are put in their places before they are converted all at once. A vector loop over each
// short row by itself took twice as long.
constexpr int64_t kBlockBytes = 4096;

}  // namespace

void crop_flip(const CropFlipParams& p, int64_t begin, int64_t end) {
  const int64_t lines = crop_flip_lines(p);
  const int64_t together = p.channels_last ? p.channels : 1;  // channels in a line
  const int64_t line_numel = p.width * together;
  const int64_t plane = int64_t(p.height) * p.width;
  const int64_t block = std::max<int64_t>(1, kBlockBytes / line_numel);  // lines
  std::vector<uint8_t> bytes(size_t(block * line_numel));
  for (int64_t line = begin; line < end;) {
    const int64_t b = line / lines, within = line % lines;
    const int64_t count = std::min({block, lines - within, end - line});
    const int64_t number = view_of(p, b);
    if (within == 0) p.view[b] = number;
    const CropView view = is_counted(p) ? read_view(p, number) : draw_from_view(p, number);
    // The columns of the source that are seen, and where in a line they go.
    const int64_t first = std::clamp<int64_t>(view.column, view.left, view.right);
    const int64_t last = std::clamp<int64_t>(p.width + view.column, view.left, view.right);
    const int64_t cut = std::clamp<int64_t>(view.cut_left, 0, p.width) * together;
    const int64_t cut_end =
        std::clamp<int64_t>(int64_t(view.cut_left) + p.cutout, 0, p.width) * together;
    const int64_t place = view.flip ? p.width + view.column - last : first - view.column;
    const uint8_t* image = p.images + p.positions[b] * p.channels * plane;
    if (within == 0 && b + 1 < p.batch) {
      prefetch(p.images + p.positions[b + 1] * p.channels * plane, p.channels * plane);
    }
    int64_t channel = within / p.height, y = within % p.height;
    memset(bytes.data(), 0, size_t(count * line_numel));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = y + view.row;
      if (row >= view.top && row < view.bottom && first < last) {
        const uint8_t* from = image + channel * plane + row * p.width + first;
        uint8_t* to = bytes.data() + i * line_numel + place * together;
        if (together > 1) {
          interleave(from, plane, together, to, last - first, view.flip);
        } else if (view.flip) {
          reverse(from, to, last - first);
        } else {
          memcpy(to, from, size_t(last - first));
        }
      }
      if (y >= view.cut_top && y < int64_t(view.cut_top) + p.cutout) {
        memset(bytes.data() + i * line_numel + cut, 0, size_t(cut_end - cut));
      }
      if (++y == p.height) {
        y = 0;
        ++channel;
      }
    }
    convert(bytes.data(), p.x + line * line_numel, count * line_numel, p.levels);
    line += count;
  }
}

}  // namespace ard::cpu
