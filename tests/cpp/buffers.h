// Buffers that end where their data end, for AddressSanitizer, and what the tests fill them with.
#pragma once

#include <cmath>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>

#include "core/half.h"
#include "core/params.h"

namespace ard::test {

template <typename T>
constexpr Dtype dtype_of() {
  return std::is_same_v<T, float> ? Dtype::f32 : std::is_same_v<T, f16> ? Dtype::f16 : Dtype::bf16;
}

/// `count` values that begin `offset` elements after a 16-byte boundary and end with the
/// allocation.
template <typename T>
class Buffer {
 public:
  Buffer(std::size_t count, std::size_t offset)
      : memory_(new T[offset + count]), offset_(offset), count_(count) {}
  T* data() { return memory_.get() + offset_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t i) { return data()[i]; }
  Buffer copy() {
    Buffer out(count_, offset_);
    std::memcpy(static_cast<void*>(out.data()), data(), count_ * sizeof(T));
    return out;
  }

 private:
  std::unique_ptr<T[]> memory_;
  std::size_t offset_, count_;
};

inline std::mt19937 generator(7);

inline float random_value(float scale) {
  constexpr float kEdges[] = {0.0f, -0.0f, 1e-45f, -1e-40f, 1.0f, HUGE_VALF, -HUGE_VALF, NAN};
  const unsigned draw = static_cast<unsigned>(generator());
  if (draw % 5 == 0) return kEdges[draw / 5 % std::size(kEdges)];
  return scale * (static_cast<float>(draw >> 8) * 0x1p-23f - 1.0f);
}

template <typename T>
void fill(Buffer<T>& buffer, float scale) {
  for (std::size_t i = 0; i < buffer.size(); ++i) buffer[i] = from_float<T>(random_value(scale));
}

inline bool same(Buffer<float>& a, Buffer<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (float_to_bits(a[i]) != float_to_bits(b[i]) && !(a[i] != a[i] && b[i] != b[i])) return false;
  }
  return true;
}

}  // namespace ard::test
