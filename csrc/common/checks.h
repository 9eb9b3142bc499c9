// What every op demands of its tensors, once, for CPU and CUDA. Messages name the argument, what
// was expected and what came. But for check_in_range nothing here reads tensor data, so nothing
// here synchronises.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#include "common/half.h"

// torch 2.11 has this only under its older name.
#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace ard {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Args>
[[noreturn]] void fail(const Args&... message) {
  std::ostringstream out;
  out << "ard_fast: ";
  ((out << message), ...);
  throw std::runtime_error(out.str());
}

// A macro, so that a message is put together only when it is needed.
#define ARD_CHECK(ok, ...) ((ok) ? (void)0 : ::ard::fail(__VA_ARGS__))

inline std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << '[';
  for (int64_t d = 0; d < t.dim(); ++d) out << (d ? ", " : "") << t.size(d);
  out << ']';
  return out.str();
}

inline std::string device_of(const Tensor& t) {
  const std::string type = t.is_cpu() ? "cpu" : t.is_cuda() ? "cuda" : "another device type";
  return t.is_cuda() ? type + ":" + std::to_string(t.get_device_index()) : type;
}

inline const char* dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

// Python's None arrives as a tensor without content where the schema has no `?`. A name is whatever
// can be written to a stream, so that one that has to be put together is put together only for a
// message.
template <typename Name>
void check_given(const Tensor& t, const Name& name) {
  ARD_CHECK(t.defined(), name, " must be a tensor, got None");
}

template <typename Name>
void check_dtype(const Tensor& t, const Name& name, ScalarType expected, const char* text) {
  check_given(t, name);
  ARD_CHECK(t.scalar_type() == expected, name, " must be ", text, ", got ", dtype_of(t));
}

inline void check_float_dtype(const Tensor& t, const char* name) {
  check_given(t, name);
  const ScalarType s = t.scalar_type();
  ARD_CHECK(s == ScalarType::Float || s == ScalarType::Half || s == ScalarType::BFloat16, name,
            " must be float32, float16 or bfloat16, got ", dtype_of(t));
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d)) return false;
  }
  return true;
}

template <typename Name>
void check_device(const Tensor& t, const Name& name, const Tensor& like, const char* like_name) {
  ARD_CHECK(t.is_cuda() == like.is_cuda() && t.get_device_index() == like.get_device_index(), name,
            " must be on the device of ", like_name, " (", device_of(like), "), got ",
            device_of(t));
}

inline void check_like(const Tensor& t, const char* name, const Tensor& like,
                       const char* like_name) {
  check_given(t, name);
  ARD_CHECK(same_shape(t, like), name, " must have the shape of ", like_name, " ", shape_of(like),
            ", got ", shape_of(t));
  check_device(t, name, like, like_name);
}

// Equal strides wherever they matter (dimensions of size 1 have arbitrary ones).
inline void check_same_layout(const Tensor& t, const char* name, const Tensor& like,
                              const char* like_name) {
  for (int64_t d = 0; d < t.dim(); ++d) {
    ARD_CHECK(t.size(d) == 1 || t.numel() == 0 || t.stride(d) == like.stride(d), name,
              " must have the memory layout of ", like_name, ": stride ", like.stride(d),
              " in dimension ", d, ", got ", t.stride(d));
  }
}

// No gaps and no overlap: some permutation of the dimensions is contiguous.
inline bool is_dense(const Tensor& t) {
  if (t.numel() == 0) return true;
  int64_t expected = 1;
  for (bool grown = true; grown;) {
    grown = false;
    for (int64_t d = 0; d < t.dim() && !grown; ++d) {
      grown = t.size(d) != 1 && t.stride(d) == expected;
      if (grown) expected *= t.size(d);
    }
  }
  return expected == t.numel();
}

inline void check_dense(const Tensor& t, const char* name) {
  ARD_CHECK(is_dense(t), name,
            " must be dense in memory (contiguous, channels_last or a permutation), "
            "got shape ",
            shape_of(t), " with gaps or overlaps");
}

// Samples follow one another in memory.
inline void check_batch_outermost(const Tensor& t, const char* name, const char* why) {
  ARD_CHECK(t.dim() >= 1, name, " must have a batch dimension for ", why, ", got a scalar");
  ARD_CHECK(t.numel() == 0 || t.size(0) == 1 || t.stride(0) == t.numel() / t.size(0), name,
            " must have its batch dimension outermost in memory for ", why);
}

// A contiguous vector of `size` elements; `each`: what one of them is, such as "one entry a
// sample".
template <typename Name>
void check_vector(const Tensor& t, const Name& name, int64_t size, const char* each,
                  ScalarType dtype, const char* dtype_text, const Tensor& like,
                  const char* like_name) {
  check_given(t, name);
  ARD_CHECK(t.dim() == 1 && t.size(0) == size, name, " must have shape [", size, "], ", each,
            ", got ", shape_of(t));
  check_dtype(t, name, dtype, dtype_text);
  check_device(t, name, like, like_name);
  ARD_CHECK(size < 2 || t.stride(0) == 1, name, " must be contiguous");
}

inline void check_per_sample(const std::optional<Tensor>& t, const char* name, const Tensor& x,
                             ScalarType dtype, const char* dtype_text, const char* x_name = "x") {
  if (!t) return;
  ARD_CHECK(x.dim() >= 1, x_name, " must have a batch dimension for ", name, ", got a scalar");
  check_vector(*t, name, x.size(0), "one entry a sample", dtype, dtype_text, x, x_name);
}

// For CPU tensors. Values of CUDA tensors are not read: what does not exist becomes NaN there.
inline void check_in_range(const int64_t* values, const char* name, int64_t count, int64_t end) {
  for (int64_t i = 0; values && i < count; ++i) {
    ARD_CHECK(values[i] >= 0 && values[i] < end, name, " must be in [0, ", end, "), got ",
              values[i], " at position ", i);
  }
}

inline int64_t bytes_of(const Tensor& t) {
  const ScalarType s = t.scalar_type();
  const bool one = s == ScalarType::Bool || s == ScalarType::Byte;
  const bool two = s == ScalarType::Half || s == ScalarType::BFloat16;
  return t.numel() * (one ? 1 : two ? 2 : s == ScalarType::Long ? 8 : 4);
}

inline bool apart(const Tensor& a, const Tensor& b) {
  const auto* const begin = static_cast<const char*>(a.data_ptr());
  const auto* const other = static_cast<const char*>(b.data_ptr());
  return begin + bytes_of(a) <= other || other + bytes_of(b) <= begin;
}

// An in-place output may coincide with an input but not be shifted against it.
inline void check_no_partial_overlap(const Tensor& out, const char* out_name, const Tensor& in,
                                     const char* in_name) {
  const bool same = out.data_ptr() == in.data_ptr() && bytes_of(out) == bytes_of(in);
  ARD_CHECK(same || apart(out, in), out_name, " must not partly overlap ", in_name, " in memory");
}

// For outputs that must not coincide with an input either: the blocks of a kernel read and write
// without an order among them.
template <typename Name>
void check_apart(const Tensor& out, const char* out_name, const Tensor& in, const Name& in_name) {
  ARD_CHECK(apart(out, in), out_name, " must not overlap ", in_name, " in memory");
}

inline Dtype dtype_tag(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Dtype::f16;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    default:
      return Dtype::f32;
  }
}

template <typename T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? static_cast<const T*>(t->data_ptr()) : nullptr;
}

// Within a sample, in memory: 1 for contiguous, C for channels-last order.
inline int64_t innermost_channels(const Tensor& x, const char* name) {
  int64_t expected = 1;
  bool contiguous = true;
  for (int64_t d = x.dim() - 1; d >= 1; --d) {
    contiguous = contiguous && (x.size(d) == 1 || x.stride(d) == expected);
    expected *= x.size(d);
  }
  if (contiguous) return 1;
  const int64_t channels = x.size(1);
  bool channels_last = x.dim() >= 3 && (channels == 1 || x.stride(1) == 1);
  expected = channels;
  for (int64_t d = x.dim() - 1; d >= 2; --d) {
    channels_last = channels_last && (x.size(d) == 1 || x.stride(d) == expected);
    expected *= x.size(d);
  }
  ARD_CHECK(channels_last, name, " must be contiguous or channels_last within a sample, got shape ",
            shape_of(x), " in another memory order");
  return channels;
}

// A new tensor on the device of `like`. Not torch::stable::new_empty, which looks its operator up
// by name in every call: five times the instructions.
inline Tensor new_strided(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                          torch::headeronly::IntHeaderOnlyArrayRef strides, ScalarType dtype) {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device_type,
      like.get_device_index(), &handle));
  return Tensor(handle);
}

inline Tensor new_vector(const Tensor& like, int64_t size, ScalarType dtype) {
  constexpr int64_t kStride = 1;
  return new_strided(like, {&size, 1}, {&kStride, 1}, dtype);
}

inline Tensor empty_with_layout_of(const Tensor& x) {
  return new_strided(x, x.sizes(), x.strides(), x.scalar_type());
}

}  // namespace ard
