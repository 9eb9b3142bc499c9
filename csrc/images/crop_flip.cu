// One pass from bytes to pixels. The first thread of a block draws the view of its image.
#include "common/divisor.h"
#include "common/launch.h"
#include "common/vectors.cuh"
#include "images/crop_flip.h"

namespace ard::cuda {

constexpr int kCropFlipThreads = 256;
constexpr int kWarps = kCropFlipThreads / 32;

struct CropFlipPlan {
  int quad_channels;  // of the four neighbours in a row that a thread takes; 0: it takes one pixel
  Divisor blocks_per_sample;
  Divisor inner, outer;  // places of quads or pixels in a line, and lines in what is left
  int64_t blocks;
};

// What a block works on.
struct CropFlipBlock {
  int64_t image;  // its first byte among the images; -1: the position or given view does not exist
  int64_t out;    // its first pixel
  CropView view;
  uint32_t first, stride;  // of the quads or pixels of its first thread
  bool amid;               // what lies in memory around the image's rows is of the images as well
};

// The same for all threads of the block.
__device__ __forceinline__ const CropFlipBlock& crop_flip_block(const CropFlipParams& p,
                                                                const CropFlipPlan& plan) {
  __shared__ CropFlipBlock shared;
  if (threadIdx.x == 0) {
    const Divided at = divided(blockIdx.x, plan.blocks_per_sample);
    const int64_t numel = int64_t(p.channels) * p.height * p.width;
    const int64_t number = view_of(p, at.quotient);
    if (at.remainder == 0) p.view[at.quotient] = number;
    shared.image = -1;
    if (number != kNoView) {
      const CropView view = is_counted(p) ? read_view(p, number) : draw_from_view(p, number);
      const int64_t image = p.positions[at.quotient] * numel;
      // A row is read from so many bytes before it on, or so many past it.
      const int64_t beside = (view.column < 0 ? -view.column : view.column) + 3;
      shared.image = image;
      shared.view = view;
      shared.amid = image >= beside && image + numel + beside <= p.count * numel;
    }
    shared.out = at.quotient * numel;
    shared.first = at.remainder * kCropFlipThreads;
    shared.stride = plan.blocks_per_sample.number * kCropFlipThreads;
  }
  __syncthreads();
  return shared;
}

__device__ __forceinline__ void fill_with_nan(const CropFlipParams& p, const CropFlipBlock& block) {
  const uint32_t numel = uint32_t(p.channels) * uint32_t(p.height) * uint32_t(p.width);
  for (uint32_t i = block.first + threadIdx.x; i < numel; i += block.stride) {
    p.x[block.out + i] = NAN;
  }
}

// The bytes begin ... end - 1 of a word, as far as it has them.
__device__ __forceinline__ uint32_t byte_mask(int32_t begin, int32_t end) {
  const uint32_t from = __funnelshift_lc(0u, ~0u, 8u * uint32_t(begin > 0 ? begin : 0));
  const uint32_t until = __funnelshift_rc(~0u, 0u, 8u * uint32_t(end < 4 ? 4 - end : 0));
  return from & until;
}

// Four bytes from `at` on, which need not be aligned, of each of kPlanes planes, in the order that
// __byte_perm is given: two aligned loads each, of bytes beside them too.
template <int kPlanes>
__device__ __forceinline__ void load_fours(const uint8_t* at, int64_t plane, uint32_t order,
                                           uint32_t (&bytes)[kPlanes]) {
  const uint32_t shift = uint32_t(reinterpret_cast<uintptr_t>(at)) & 3;
  const uint8_t *low = at - shift, *high = low + (shift ? 4 : 0);
  uint32_t words[kPlanes][2];  // planes are whole words
#pragma unroll
  for (int c = 0; c < kPlanes; ++c) {
    words[c][0] = *reinterpret_cast<const uint32_t*>(low + c * plane);
    words[c][1] = *reinterpret_cast<const uint32_t*>(high + c * plane);
  }
#pragma unroll
  for (int c = 0; c < kPlanes; ++c) {
    bytes[c] = __byte_perm(words[c][0], words[c][1], order + 0x1111u * shift);
  }
}

// The same for the first and the last image: only bytes whose bits of the mask are set.
template <int kPlanes>
__device__ __forceinline__ void load_fours(const uint8_t* at, int64_t plane, uint32_t order,
                                           uint32_t mask, uint32_t (&bytes)[kPlanes]) {
#pragma unroll
  for (int c = 0; c < kPlanes; ++c) {
    bytes[c] = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int from = int(order >> (4 * j) & 3u);
      if (mask >> (8 * j) & 1u) bytes[c] |= uint32_t(at[c * plane + from]) << (8 * j);
    }
  }
}

// Four pixels in a row of each of kChannels channels a thread: one for planes, all (three) for
// channels_last. Rows are whole quads.
template <int kChannels>
__global__ void __launch_bounds__(kCropFlipThreads)
    crop_flip_kernel(CropFlipParams p, CropFlipPlan plan) {
  const CropFlipBlock& block = crop_flip_block(p, plan);
  if (block.image < 0) return fill_with_nan(p, block);
  const CropView view = block.view;
  const uint8_t* image = p.images + block.image;
  float* out = p.x + block.out;
  const bool amid = block.amid;
  const int32_t plane = p.height * p.width;
  const uint32_t quads = uint32_t(plane) / 4 * uint32_t(kChannels == 1 ? p.channels : 1);
  // The columns of the view that show the image.
  const int32_t left = view.flip ? p.width + view.column - view.right : view.left - view.column;
  const int32_t right = left + view.right - view.left;
  const uint32_t order = view.flip ? 0x0123 : 0x3210;
  const uint32_t lane = threadIdx.x % 32, stride = block.stride;
  for (uint32_t first = block.first + threadIdx.x - lane; first < quads; first += stride) {
    const uint32_t quad = first + lane;
    const Divided line = divided(quad, plan.inner);
    const Divided channel =
        kChannels == 1 ? divided(line.quotient, plan.outer) : Divided{0, line.quotient};
    const int32_t x = int32_t(line.remainder) * 4, y = int32_t(channel.remainder);
    const int32_t row = y + view.row;
    const int32_t column = (view.flip ? p.width - 4 - x : x) + view.column;
    const bool shown = quad < quads && row >= view.top && row < view.bottom;
    uint32_t mask = shown ? byte_mask(left - x, right - x) : 0;
    if (uint32_t(y - view.cut_top) < uint32_t(p.cutout)) {
      mask &= ~byte_mask(view.cut_left - x, view.cut_left - x + p.cutout);
    }
    const uint8_t* from =
        image + int64_t(int32_t(channel.quotient) * p.height + row) * p.width + column;
    uint32_t bytes[kChannels] = {};
    if (mask && amid) {
      load_fours(from, plane, order, bytes);
    } else if (mask) {
      load_fours(from, plane, order, mask, bytes);
    }
    Vec<float, 4> pixels[kChannels];  // in the order of the output
#pragma unroll
    for (int i = 0; i < 4 * kChannels; ++i) {
      const uint32_t byte = (bytes[i % kChannels] & mask) >> (i / kChannels * 8) & 0xffu;
      pixels[i / 4].v[i % 4] = level_value(float(byte), p.levels);
    }
    if constexpr (kChannels == 1) {
      if (quad < quads) store_global<4>(out + 4 * quad, pixels[0]);
    } else {
      // Each lane has kChannels vectors; the warp writes them as vectors that follow one another.
      __shared__ Vec<float, 4> staged[kWarps][32 * kChannels];
      Vec<float, 4>* mine = staged[threadIdx.x / 32];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) mine[lane * kChannels + c] = pixels[c];
      __syncwarp();
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const uint32_t vector = first * kChannels + 32 * c + lane;
        if (vector < quads * kChannels) store_global<4>(out + 4 * vector, mine[32 * c + lane]);
      }
      __syncwarp();
    }
  }
}

// One pixel at a time, whatever the sizes.
__global__ void __launch_bounds__(kCropFlipThreads)
    crop_flip_pixels_kernel(CropFlipParams p, CropFlipPlan plan) {
  const CropFlipBlock& block = crop_flip_block(p, plan);
  if (block.image < 0) return fill_with_nan(p, block);
  const uint32_t numel = uint32_t(p.channels) * uint32_t(p.height) * uint32_t(p.width);
  for (uint32_t i = block.first + threadIdx.x; i < numel; i += block.stride) {
    const Divided inner = divided(i, plan.inner), outer = divided(inner.quotient, plan.outer);
    p.x[block.out + i] =
        p.channels_last
            ? crop_flip_pixel(p, p.images + block.image, block.view, int32_t(inner.remainder),
                              int32_t(outer.quotient), int32_t(outer.remainder))
            : crop_flip_pixel(p, p.images + block.image, block.view, int32_t(outer.quotient),
                              int32_t(outer.remainder), int32_t(inner.remainder));
  }
}

inline CropFlipPlan plan_crop_flip(const CropFlipParams& p) {
  constexpr int64_t kMost = 8;             // quads or pixels of a thread
  constexpr int64_t kEnoughBlocks = 2048;  // to fill any GPU several times over
  const bool last = p.channels_last && p.channels > 1;
  const bool quads = p.width % 4 == 0 && aligned16(p.x);
  CropFlipPlan plan{};
  plan.quad_channels = !quads ? 0 : !last ? 1 : p.channels == 3 ? 3 : 0;
  const int64_t numel = int64_t(p.channels) * p.height * p.width;
  const int64_t work = plan.quad_channels ? numel / 4 / plan.quad_channels : numel;
  const int64_t one_each = ceil_div(work, kCropFlipThreads);
  const int64_t fewest = ceil_div(work, kCropFlipThreads * kMost);
  const int64_t wanted = p.batch ? ceil_div(kEnoughBlocks, p.batch) : 1;
  // Every block draws the sample's view, so blocks are few where they are enough.
  const int64_t each = wanted < fewest ? fewest : wanted < one_each ? wanted : one_each;
  plan.blocks_per_sample = divisor(each);
  plan.blocks = p.batch * each;
  plan.inner = divisor(plan.quad_channels ? p.width / 4 : last ? p.channels : p.width);
  plan.outer = divisor(last ? p.width : p.height);
  return plan;
}

void launch_crop_flip(const CropFlipParams& p, Stream stream) {
  if (p.batch == 0) return;
  const CropFlipPlan plan = plan_crop_flip(p);
  const Geometry geometry{plan.blocks, kCropFlipThreads};
  if (plan.quad_channels == 1) return start<crop_flip_kernel<1>>(geometry, stream, p, plan);
  if (plan.quad_channels == 3) return start<crop_flip_kernel<3>>(geometry, stream, p, plan);
  start<crop_flip_pixels_kernel>(geometry, stream, p, plan);
}

}  // namespace ard::cuda
