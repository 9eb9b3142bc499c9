// The CUDA kernel of the augmentation on the emulator against the CPU loop, on buffers that end
// where their data end: for the sanitizers.
#include <algorithm>
#include <vector>

#include "buffers.h"
#include "check.h"
#include "cpu/crop_flip.h"
#include "testing/crop_flip_on_host.h"

namespace ard::test {
namespace {

struct Shape {
  int32_t channels, height, width, padding;
};

// The CPU loop over lines cut into stretches of `stretch`, as among threads.
void on_cpu(const CropFlipParams& p, int64_t stretch) {
  const int64_t lines = p.batch * cpu::crop_flip_lines(p);
  for (int64_t begin = 0; begin < lines; begin += stretch) {
    cpu::crop_flip(p, begin, std::min(lines, begin + stretch));
  }
}

void test_images(const Shape& shape, bool channels_last, std::size_t offset) {
  constexpr std::size_t kImages = 3, kBatch = 7;
  const std::size_t numel = static_cast<std::size_t>(shape.channels) *
                            static_cast<std::size_t>(shape.height) *
                            static_cast<std::size_t>(shape.width);
  Buffer<uint8_t> images(kImages * numel, offset);
  for (std::size_t i = 0; i < images.size(); ++i) images[i] = static_cast<uint8_t>(generator());
  Buffer<int64_t> positions(kBatch, 0), ids(kImages, 0), seed(1, 0), given(kBatch, 0);
  seed[0] = -5;
  for (std::size_t i = 0; i < kImages; ++i) ids[i] = static_cast<int64_t>(generator());
  CropFlipParams p{};
  p.images = images.data();
  p.positions = positions.data();
  p.count = kImages;
  p.batch = kBatch;
  p.channels = shape.channels;
  p.height = shape.height;
  p.width = shape.width;
  p.padding = shape.padding;
  unit_scale(255, &p.scale_high, &p.scale_low);
  p.channels_last = channels_last;
  for (std::size_t b = 0; b < kBatch; ++b) {
    positions[b] = static_cast<int64_t>(generator() % kImages);
    given[b] = static_cast<int64_t>(generator()) % view_count(p.padding);
  }
  for (int variant = 0; variant < 4; ++variant) {
    p.seed = variant < 3 ? seed.data() : nullptr;
    p.ids = variant == 1 ? ids.data() : nullptr;
    p.given = variant < 3 ? nullptr : given.data();
    p.flip = variant != 2;
    Buffer<float> expected(kBatch * numel, 0), x(kBatch * numel, offset);
    Buffer<int64_t> expected_view(kBatch, 0), view(kBatch, 0);
    p.x = expected.data();
    p.view = expected_view.data();
    on_cpu(p, variant == 0 ? 1 << 20 : variant);
    p.x = x.data();
    p.view = view.data();
    emu::crop_flip(p);
    CHECK(same(x, expected));
    for (std::size_t b = 0; b < kBatch; ++b) CHECK(view[b] == expected_view[b]);
  }
  // What does not exist: no byte of the images is read for it.
  for (const int64_t bad : {int64_t(-1), int64_t(kImages), int64_t(1) << 62}) {
    for (std::size_t b = 0; b < kBatch; ++b) positions[b] = bad;
    Buffer<float> x(kBatch * numel, 0);
    Buffer<int64_t> view(kBatch, 0);
    p.x = x.data();
    p.view = view.data();
    emu::crop_flip(p);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(x[i] != x[i]);
    for (std::size_t b = 0; b < kBatch; ++b) CHECK(view[b] == kNoView);
  }
}

}  // namespace
}  // namespace ard::test

int main() {
  using namespace ard::test;
  // One pixel; no padding; padding beyond the image; odd sizes; rows beyond a block of the CPU
  // loop; vectors that cross rows and channels.
  for (const Shape& shape :
       {Shape{1, 1, 1, 1}, Shape{3, 8, 8, 0}, Shape{2, 3, 5, 9}, Shape{3, 7, 5, 2},
        Shape{1, 2, 5001, 3}, Shape{3, 2, 2050, 4}, Shape{4, 3, 9, 1}, Shape{3, 32, 32, 4}}) {
    for (const bool channels_last : {false, true}) {
      test_images(shape, channels_last, 0);
      test_images(shape, channels_last, 1);
    }
  }
  return finish("test_crop_flip_emulated");
}
