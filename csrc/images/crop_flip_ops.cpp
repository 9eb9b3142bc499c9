#include <algorithm>
#include <array>

#include "common/operators.h"
#include "images/crop_flip.h"

namespace ard {
namespace {

struct CropFlipOutputs {
  Tensor x, view;
};

// A new float32 tensor [B, C, H, W] on the device of `images`.
Tensor empty_pixels(const Tensor& images, int64_t batch, bool channels_last) {
  const int64_t c = images.size(1), h = images.size(2), w = images.size(3);
  const std::array<int64_t, 4> sizes{batch, c, h, w};
  const std::array<int64_t, 4> plain{c * h * w, h * w, w, 1}, last{c * h * w, 1, w * c, c};
  return new_strided(images, {sizes.data(), 4}, {(channels_last ? last : plain).data(), 4},
                     ScalarType::Float);
}

void check_indices(const Tensor& t, const char* name, const Tensor& images, int64_t size,
                   const char* each) {
  check_vector(t, name, size, each, ScalarType::Long, "int64", images, "images");
}

CropFlipParams pack_crop_flip(const Tensor& images,                // [N, C, H, W] uint8
                              const Tensor& positions,             // [B] int64
                              const std::optional<Tensor>& seed,   // [1] int64
                              const std::optional<Tensor>& ids,    // [N] int64
                              const std::optional<Tensor>& views,  // [B] int64
                              int64_t padding, bool flip, int64_t levels, bool channels_last,
                              int64_t cropshift, int64_t cutout, CropFlipOutputs& out) {
  check_dtype(images, "images", ScalarType::Byte, "uint8");
  ARD_CHECK(images.dim() == 4, "images must have shape [N, C, H, W], got ", shape_of(images));
  const int64_t c = images.size(1), h = images.size(2), w = images.size(3);
  ARD_CHECK(c > 0 && h > 0 && w > 0, "images must have at least one pixel each, got shape ",
            shape_of(images));
  constexpr int64_t kMost = 0x7fffffff;
  ARD_CHECK(c <= kMost / h && c * h <= kMost / w, "images must have fewer than 2^31 pixels each, ",
            "got shape ", shape_of(images));
  for (int64_t d = 3, expected = 1; d >= 0; expected *= images.size(d--)) {
    ARD_CHECK(images.size(d) == 1 || images.numel() == 0 || images.stride(d) == expected,
              "images must be contiguous (images.contiguous() makes a copy), got stride ",
              images.stride(d), " in dimension ", d, " of shape ", shape_of(images));
  }
  check_given(positions, "positions");
  ARD_CHECK(positions.dim() == 1, "positions must have shape [B], got ", shape_of(positions));
  const int64_t batch = positions.size(0);
  check_indices(positions, "positions", images, batch, "one entry a sample");
  ARD_CHECK(seed.has_value() != views.has_value(), "either seed or views must be given");
  if (seed) {
    check_dtype(*seed, "seed", ScalarType::Long, "int64");
    ARD_CHECK(seed->numel() == 1, "seed must have one element, got shape ", shape_of(*seed));
    check_device(*seed, "seed", images, "images");
  }
  ARD_CHECK(!ids || seed, "ids must not be given with views: nothing is drawn");
  if (ids) check_indices(*ids, "ids", images, images.size(0), "one entry an image");
  if (views) check_indices(*views, "views", images, batch, "one entry a sample");
  ARD_CHECK(padding >= 0 && padding < 1 << 15, "padding must be at least 0 and below 2^15, got ",
            padding);
  ARD_CHECK(cropshift >= 0 && cropshift < std::min(h, w), "cropshift must be at least 0 and below ",
            "height and width, got ", cropshift, " for images of shape ", shape_of(images));
  ARD_CHECK(cropshift == 0 || padding == 0, "padding must be 0 with cropshift, got ", padding);
  ARD_CHECK(cutout >= 0 && cutout <= std::min(h, w), "cutout must be at least 0 and at most ",
            "height and width, got ", cutout, " for images of shape ", shape_of(images));
  ARD_CHECK(levels >= 1 && levels <= 255, "levels must be between 1 and 255, got ", levels);

  out.x = empty_pixels(images, batch, channels_last);
  out.view = new_vector(images, batch, ScalarType::Long);

  CropFlipParams p{};
  p.images = static_cast<const uint8_t*>(images.data_ptr());
  p.positions = static_cast<const int64_t*>(positions.data_ptr());
  p.seed = data_or_null<int64_t>(seed);
  p.ids = data_or_null<int64_t>(ids);
  p.given = data_or_null<int64_t>(views);
  p.x = static_cast<float*>(out.x.data_ptr());
  p.view = static_cast<int64_t*>(out.view.data_ptr());
  p.count = images.size(0);
  p.batch = batch;
  p.channels = int32_t(c);
  p.height = int32_t(h);
  p.width = int32_t(w);
  p.padding = int32_t(padding);
  p.cropshift = int32_t(cropshift);
  p.cutout = int32_t(cutout);
  p.levels = pixel_levels(levels);
  p.flip = flip;
  p.channels_last = channels_last;
  return p;
}

std::tuple<Tensor, Tensor> crop_flip(const Tensor images, const Tensor positions,
                                     std::optional<Tensor> seed, std::optional<Tensor> ids,
                                     std::optional<Tensor> views, int64_t padding, bool flip,
                                     int64_t levels, bool channels_last, int64_t cropshift,
                                     int64_t cutout) {
  CropFlipOutputs out;
  const CropFlipParams p = pack_crop_flip(images, positions, seed, ids, views, padding, flip,
                                          levels, channels_last, cropshift, cutout, out);
  if (!on_gpu(images)) {
    check_in_range(p.positions, "positions", p.batch, p.count);
    check_in_range(p.given, "views", p.batch, view_limit(p));
  }
  const int64_t line_numel = int64_t(p.width) * (channels_last ? p.channels : 1);
  run(
      images, [&](auto stream) { cuda::launch_crop_flip(p, stream); },
      p.batch * cpu::crop_flip_lines(p), std::max<int64_t>(1, (1 << 15) / line_numel),
      [&](auto begin, auto end) { cpu::crop_flip(p, begin, end); });
  return {out.x, out.view};
}

}  // namespace
}  // namespace ard

ARD_OPERATORS(m) { m.impl("crop_flip", TORCH_BOX(&ard::crop_flip)); }
