// One pass from bytes to pixels, no shared memory, no communication.
#include "common/launch.h"
#include "common/vectors.cuh"
#include "images/crop_flip.h"

namespace ard::cuda {

constexpr int kCropFlipThreads = 256;

// The place of an output element in its image, moved on one element at a time in memory order.
template <bool kChannelsLast>
struct PixelPlace {
  uint32_t channel, y, x;

  // Unsigned 32-bit division costs a GPU far less than 64-bit.
  __device__ __forceinline__ PixelPlace(const CropFlipParams& p, uint32_t element) {
    const uint32_t inner = kChannelsLast ? p.channels : p.width;
    const uint32_t outer = kChannelsLast ? p.width : p.height;
    const uint32_t line = element / inner;
    (kChannelsLast ? channel : x) = element - line * inner;
    (kChannelsLast ? y : channel) = line / outer;
    (kChannelsLast ? x : y) = line % outer;
  }

  __device__ __forceinline__ void next(const CropFlipParams& p) {
    if constexpr (kChannelsLast) {
      if (++channel < uint32_t(p.channels)) return;
      channel = 0;
      if (++x < uint32_t(p.width)) return;
      x = 0;
      ++y;
    } else {
      if (++x < uint32_t(p.width)) return;
      x = 0;
      if (++y < uint32_t(p.height)) return;
      y = 0;
      ++channel;
    }
  }
};

// `blocks` blocks a sample; a thread takes every so many-th vector of kVec output elements. A
// sample whose position or given view does not exist becomes NaN.
template <bool kChannelsLast, bool kCounted, int kVec>
__global__ void __launch_bounds__(kCropFlipThreads)
    crop_flip_kernel(CropFlipParams p, uint32_t blocks) {
  const uint32_t b = blockIdx.x / blocks, block = blockIdx.x % blocks;
  const int64_t number = view_of(p, b);
  if (block == 0 && threadIdx.x == 0) p.view[b] = number;
  const uint32_t numel = uint32_t(p.channels) * uint32_t(p.height) * uint32_t(p.width);
  const bool exists = number != kNoView;
  const CropView view =
      kCounted ? read_view(p, exists ? number : 0) : draw_from_view(p, exists ? number : 0);
  const uint8_t* image = p.images + (exists ? p.positions[b] : 0) * int64_t(numel);
  float* out = p.x + int64_t(b) * numel;
  const uint32_t vectors = numel / kVec;
  for (uint32_t v = block * kCropFlipThreads + threadIdx.x; v < vectors;
       v += blocks * kCropFlipThreads) {
    PixelPlace<kChannelsLast> place(p, v * kVec);
    Vec<float, kVec> pixels;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      pixels.v[j] = exists ? crop_flip_pixel<kCounted>(p, image, view, int32_t(place.channel),
                                                       int32_t(place.y), int32_t(place.x))
                           : NAN;
      place.next(p);
    }
    store_vec<kVec>(out + v * kVec, pixels);
  }
}

struct CropFlipPlan {
  bool vector;  // 16-byte stores
  int64_t blocks_per_sample;
  int64_t blocks;
};

inline CropFlipPlan plan_crop_flip(const CropFlipParams& p) {
  constexpr int64_t kMostVectors = 8;      // of a thread
  constexpr int64_t kEnoughBlocks = 2048;  // to fill any GPU several times over
  const int64_t numel = int64_t(p.channels) * p.height * p.width;
  CropFlipPlan plan{};
  plan.vector = numel % 4 == 0 && aligned16(p.x);
  const int64_t vectors = numel / (plan.vector ? 4 : 1);
  const int64_t one_each = ceil_div(vectors, kCropFlipThreads);
  const int64_t fewest = ceil_div(vectors, kCropFlipThreads * kMostVectors);
  const int64_t wanted = p.batch ? ceil_div(kEnoughBlocks, p.batch) : 1;
  // Every thread draws the sample's view, so threads are few where they are enough.
  plan.blocks_per_sample = wanted < fewest ? fewest : wanted < one_each ? wanted : one_each;
  plan.blocks = p.batch * plan.blocks_per_sample;
  return plan;
}

void launch_crop_flip(const CropFlipParams& p, Stream stream) {
  if (p.batch == 0) return;
  const CropFlipPlan plan = plan_crop_flip(p);
  for_bool(is_counted(p), [&](auto counted) {
    for_bools(p.channels_last, plan.vector, [&](auto last, auto vector) {
      start<crop_flip_kernel<last.value, counted.value, vector.value ? 4 : 1>>(
          {plan.blocks, kCropFlipThreads}, stream, p, uint32_t(plan.blocks_per_sample));
    });
  });
}

}  // namespace ard::cuda
