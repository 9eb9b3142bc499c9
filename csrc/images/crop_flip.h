// The augmentation of one image: which view of it to take, and one pixel of that view.
#pragma once

#include "common/levels.h"
#include "common/philox.h"

namespace ard {

// B batch, N images.
struct CropFlipParams {
  const uint8_t* images;     // [N, C, H, W] contiguous
  const int64_t* positions;  // [B] which image
  const int64_t* seed;       // [1], or null when the views are given
  const int64_t* ids;        // [N] what the draw of each image is keyed by, or null: its position
  const int64_t* given;      // [B] views, or null when they are drawn
  float* x;                  // [B, C, H, W], or [B, H, W, C] when channels_last
  int64_t* view;             // [B]
  int64_t count;             // N
  int64_t batch;
  int32_t channels, height, width;  // C * H * W < 2^31
  int32_t padding;                  // of zeros, on all four sides; 0 with cropshift
  int32_t cropshift;                // the most rows and columns, together, that it cuts away
  int32_t cutout;                   // side of a square of zeros
  Levels levels;
  bool flip;  // whether there are flips
  bool channels_last;
};

// A view is one of the crops of the zero-padded image, then flipped or not. Written as one number:
// (row * (2p + 1) + column) * 2 + flip. With cropshift or cutout there are too many to be counted:
// a view is then any number below 2^62, from which everything about it is drawn.
struct CropView {
  int32_t row, column;  // of the source, at the first row and column of the view
  bool flip;
  int32_t top, bottom, left, right;  // the part of the source that is seen; the rest is zero
  int32_t cut_top, cut_left;         // the first row and column of the square of zeros
};

ARD_HD int64_t crop_span(int32_t padding) { return 2 * int64_t(padding) + 1; }

ARD_HD int64_t view_count(int32_t padding) { return 2 * crop_span(padding) * crop_span(padding); }

// 0 ... span - 1 from 32 random bits by their product's upper half (Lemire, "Fast random integer
// generation in an interval", 2019, without the rejection): the probability of a value is off by
// less than 2^-32, so with a padding below 2^15 by less than 2^-16 of itself, and for a padding of
// 4 by 2^-28.
ARD_HD uint32_t bounded(uint32_t bits, uint32_t span) {
  return uint32_t((uint64_t(bits) * span) >> 32);
}

ARD_HD bool is_counted(const CropFlipParams& p) { return p.cropshift == 0 && p.cutout == 0; }

ARD_HD int64_t view_limit(const CropFlipParams& p) {
  return is_counted(p) ? view_count(p.padding) : int64_t(1) << 62;
}

// The view of sample `id` under `seed`; without padding and flips always view 0.
ARD_HD int64_t draw_view(const CropFlipParams& p, uint64_t seed, uint64_t id) {
  const PhiloxBlock bits = philox_for_group(seed, id, 0);
  if (!is_counted(p)) return int64_t(bits.v[1] & 0x3fffffffu) << 32 | bits.v[0];
  const int64_t span = crop_span(p.padding);
  const int64_t row = bounded(bits.v[0], uint32_t(span));
  const int64_t column = bounded(bits.v[1], uint32_t(span));
  return (row * span + column) * 2 + (p.flip ? bits.v[2] >> 31 : 0);
}

ARD_HD CropView read_view(const CropFlipParams& p, int64_t view) {
  // Both below 2^32: 64-bit division takes a GPU much longer.
  const uint32_t span = uint32_t(crop_span(p.padding)), crop = uint32_t(view / 2);
  return {int32_t(crop / span) - p.padding,
          int32_t(crop % span) - p.padding,
          view % 2 != 0,
          0,
          p.height,
          0,
          p.width,
          p.height,
          p.width};
}

// The same of a view that is not counted. Cropshift cuts rows and columns away, together at most
// `cropshift`, at random from both sides, and puts what is left at a random place on zeros. The
// middle of the square of zeros is any pixel.
ARD_HD CropView draw_from_view(const CropFlipParams& p, int64_t view) {
  const PhiloxBlock first = philox_for_group(uint64_t(view), 0, 0);
  const PhiloxBlock second = philox_for_group(uint64_t(view), 0, 1);
  const auto draw = [](uint32_t bits, int64_t most) {
    return int32_t(bounded(bits, uint32_t(most + 1)));
  };
  CropView it = read_view(p, view_count(p.padding) / 2);  // the image itself
  if (p.cropshift) {
    const int32_t both = draw(first.v[0], p.cropshift);
    const int32_t columns = draw(first.v[1], both), rows = both - columns;
    it.top = draw(first.v[2], rows);
    it.left = draw(first.v[3], columns);
    it.bottom = it.top + p.height - rows;
    it.right = it.left + p.width - columns;
    it.row = it.top - draw(second.v[0], rows);
    it.column = it.left - draw(second.v[1], columns);
  } else {
    it.row = draw(first.v[0], 2 * p.padding) - p.padding;
    it.column = draw(first.v[1], 2 * p.padding) - p.padding;
  }
  if (p.cutout) {
    it.cut_top = draw(second.v[2], p.height - 1) - p.cutout / 2;
    it.cut_left = draw(second.v[3], p.width - 1) - p.cutout / 2;
  }
  it.flip = p.flip && view % 2 != 0;
  return it;
}

constexpr int64_t kNoView = -1;

// The view of place b in the batch: drawn or given; kNoView when the position or the given view
// does not exist.
ARD_HD int64_t view_of(const CropFlipParams& p, int64_t b) {
  const int64_t position = p.positions[b];
  if (position < 0 || position >= p.count) return kNoView;
  if (p.given) {
    const int64_t view = p.given[b];
    return view >= 0 && view < view_limit(p) ? view : kNoView;
  }
  return draw_view(p, uint64_t(*p.seed), uint64_t(p.ids ? p.ids[position] : position));
}

// The pixel at (channel, y, x) of a view.
ARD_HD float crop_flip_pixel(const CropFlipParams& p, const uint8_t* image, const CropView& view,
                             int32_t channel, int32_t y, int32_t x) {
  const int32_t row = y + view.row;
  const int32_t column = (view.flip ? p.width - 1 - x : x) + view.column;
  const bool seen =
      row >= view.top && row < view.bottom && column >= view.left && column < view.right;
  const bool cut = uint32_t(y - view.cut_top) < uint32_t(p.cutout) &&
                   uint32_t(x - view.cut_left) < uint32_t(p.cutout);
  const bool inside = seen && !cut;
  // The address is inside the image in any case.
  const uint8_t value = image[inside ? (channel * p.height + row) * p.width + column : 0];
  return inside ? level_value(float(value), p.levels) : 0.0f;
}

namespace cpu {

// A line is what one thread writes in one go: an image row of one channel, or of all channels when
// the output is channels_last.
inline int64_t crop_flip_lines(const CropFlipParams& p) {
  return int64_t(p.height) * (p.channels_last ? 1 : p.channels);
}

// Lines [begin, end) of the whole batch, in memory order. Every position and given view must exist.
void crop_flip(const CropFlipParams& p, int64_t begin, int64_t end);

}  // namespace cpu

namespace cuda {

void launch_crop_flip(const CropFlipParams& p, Stream stream);

}  // namespace cuda

}  // namespace ard
