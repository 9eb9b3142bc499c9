// The CUDA kernels of affine_relu on the emulator against the CPU loops, on buffers that end where
// their data end: for the sanitizers. And the places of elements that no tensor here is large
// enough for.
#include <algorithm>
#include <vector>

#include "buffers.h"
#include "check.h"
#include "cpu/affine.h"
#include "testing/affine_on_host.h"

namespace ard::test {
namespace {

struct Shape {
  int64_t batch, channels, pixels;
};

// Calls part(begin, end) for `stretch` blocks at a time, as among threads.
template <typename Part>
void in_parts(int64_t numel, int64_t stretch, const Part& part) {
  const int64_t step = stretch * cpu::kAffineBlock;
  for (int64_t begin = 0; begin < numel; begin += step) part(begin, std::min(numel, begin + step));
}

template <typename T>
bool same_values(Buffer<T>& a, Buffer<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float left = to_float(a[i]), right = to_float(b[i]);
    if (!(left == right || (left != left && right != right))) return false;
  }
  return true;
}

bool same_bytes(Buffer<uint8_t>& a, Buffer<uint8_t>& b) {
  return std::equal(a.data(), a.data() + a.size(), b.data());
}

template <typename T>
void test_tensors(const Shape& shape, bool last, std::size_t offset, unsigned given) {
  const int64_t numel = shape.batch * shape.channels * shape.pixels;
  const auto size = static_cast<std::size_t>(numel);
  const auto channels = static_cast<std::size_t>(shape.channels);
  Buffer<T> x(size, offset), residual(size, offset), expected(size, 0), y(size, offset);
  Buffer<float> scale(channels, offset), shift(channels, offset);
  Buffer<uint8_t> expected_mask((size + 7) / 8, 0), mask((size + 7) / 8, offset);
  fill(x, 2.0f);
  fill(residual, 1.0f);
  fill(scale, 2.0f);
  fill(shift, 1.0f);
  AffineReluParams p{};
  p.x = x.data();
  p.residual = given & 1 ? residual.data() : nullptr;
  p.scale = given & 2 ? scale.data() : nullptr;
  p.shift = given & 4 ? shift.data() : nullptr;
  p.numel = numel;
  p.channels = shape.channels;
  p.inner = last ? 1 : shape.pixels;
  p.relu = true;
  p.y = expected.data();
  p.mask = expected_mask.data();
  in_parts(numel, 1 + given % 2,
           [&](int64_t begin, int64_t end) { cpu::affine_relu(p, dtype_of<T>(), begin, end); });
  p.y = y.data();
  p.mask = mask.data();
  emu::affine_relu<T>(p);
  CHECK(same_values(y, expected));
  CHECK(same_bytes(mask, expected_mask));
  for (std::size_t i = 0; i < size; ++i) {
    const bool passed = (expected_mask[i / 8] >> (i % 8)) & 1;
    CHECK(passed == !(to_float(expected[i]) <= 0.0f));
  }
  // In place, with no relu and no mask.
  p.relu = false;
  p.mask = nullptr;
  p.y = expected.data();
  cpu::affine_relu(p, dtype_of<T>(), 0, numel);
  p.y = x.data();
  emu::affine_relu<T>(p);
  CHECK(same_values(x, expected));

  AffineReluBackwardParams b{};
  b.grad = residual.data();
  b.mask = given & 1 ? mask.data() : nullptr;
  b.scale = p.scale;
  b.numel = numel;
  b.channels = p.channels;
  b.inner = p.inner;
  b.out = expected.data();
  in_parts(numel, 1, [&](int64_t begin, int64_t end) {
    cpu::affine_relu_backward(b, dtype_of<T>(), begin, end);
  });
  b.out = y.data();
  emu::affine_relu_backward<T>(b);
  CHECK(same_values(y, expected));
}

// Vector v may be far beyond 2^29, so that the number of its first element needs 64 bits.
template <int kVec>
void test_far_places() {
  const uint32_t most = uint32_t{1} << 31;
  for (const int64_t channels : {1, 2, 3, 5, 8, 31, 1000}) {
    std::vector<float> values(static_cast<std::size_t>(channels));
    for (std::size_t c = 0; c < values.size(); ++c) values[c] = static_cast<float>(c);
    for (const int64_t inner : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{49},
                                int64_t{50176}, (int64_t{1} << 28) - 1, int64_t{1} << 28}) {
      for (int draw = 0; draw < 64; ++draw) {
        const uint32_t v = draw == 0 ? most : static_cast<uint32_t>(generator()) % most;
        float found[kVec];
        cuda::load_coefficients<cuda::Spread::any>(values.data(), 0.0f, uint32_t(channels),
                                                   uint32_t(inner), 1, v, found);
        for (int j = 0; j < kVec; ++j) {
          CHECK(found[j] == float((int64_t{v} * kVec + j) / inner % channels));
        }
      }
    }
  }
}

void test_limits_of_the_plan() {
  const float value = 0.0f;
  constexpr int64_t kMost = int64_t{1} << 28;
  CHECK(cuda::plan_affine(kMost * 32, 8, 1, &value, nullptr, true, 4).blocks == 1u << 22);
  const Shape beyond[] = {{kMost * 32 + 1, 1, 1}, {1, kMost + 1, 1}, {1, 1, kMost + 1}};
  for (const Shape& s : beyond) {
    bool refused = false;
    try {
      cuda::plan_affine(s.batch, s.channels, s.pixels, &value, nullptr, true, 4);
    } catch (const std::runtime_error&) {
      refused = true;
    }
    CHECK(refused);
  }
}

template <typename T>
void test_dtype() {
  // One element; less than a vector; a tail; channels in vectors and not; several blocks of both
  // loops; planes across blocks.
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{1, 3, 1}, Shape{2, 3, 35}, Shape{2, 8, 16},
                             Shape{3, 40, 1}, Shape{2, 24, 49}, Shape{1, 2, 2051}}) {
    for (const bool last : {false, true}) {
      for (const std::size_t offset : {std::size_t{0}, std::size_t{1}}) {
        for (unsigned given = 0; given < 8; ++given) test_tensors<T>(shape, last, offset, given);
      }
    }
  }
}

}  // namespace
}  // namespace ard::test

int main() {
  using namespace ard::test;
  test_dtype<float>();
  test_dtype<ard::f16>();
  test_dtype<ard::bf16>();
  test_far_places<4>();
  test_far_places<8>();
  test_limits_of_the_plan();
  return finish("test_affine_emulated");
}
