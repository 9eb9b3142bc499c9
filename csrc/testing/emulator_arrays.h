// NumPy arrays as the pointers that the kernels take, for the sources of the module _emulator.
//
// float16 and bfloat16 come as uint16 with the type's name beside them. Arrays are used where they
// lie, so a test chooses the alignment by slicing.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "core/half.h"

namespace py = pybind11;

namespace ard::emu {

inline std::string describe(const py::array& array) {
  return std::string(py::str(array.dtype())) + " of shape " +
         std::string(py::str(py::object(array.attr("shape"))));
}

/// Address of a contiguous 1-d array of `count` elements of type T.
template <typename T>
T* data_of(const py::array& array, const char* name, int64_t count) {
  const bool contiguous =
      array.ndim() == 1 && (count < 2 || array.strides(0) == static_cast<py::ssize_t>(sizeof(T)));
  if (!array.dtype().is(py::dtype::of<T>()) || !contiguous || array.size() != count) {
    throw std::invalid_argument(std::string(name) + ": expected " + std::to_string(count) +
                                " contiguous " + std::string(py::str(py::dtype::of<T>())) +
                                ", got " + describe(array));
  }
  return static_cast<T*>(const_cast<void*>(array.data()));
}

template <typename T>
T* data_or_null(const std::optional<py::array>& array, const char* name, int64_t count) {
  return array ? data_of<T>(*array, name, count) : nullptr;
}

/// Calls run(T{}) for the named float type.
template <typename F>
void with_dtype(const std::string& name, F&& run) {
  if (name == "f32") {
    run(float{});
  } else if (name == "f16") {
    run(f16{});
  } else if (name == "bf16") {
    run(bf16{});
  } else {
    throw std::invalid_argument("dtype: expected f32, f16 or bf16, got " + name);
  }
}

/// As data_of, for the type that with_dtype chose.
template <typename T>
void* float_data(const py::array& array, const char* name, int64_t count) {
  if constexpr (std::is_same_v<T, float>) {
    return data_of<float>(array, name, count);
  } else {
    return data_of<std::uint16_t>(array, name, count);
  }
}

/// Address and row stride of [rows, classes] with contiguous classes.
template <typename T>
const void* matrix(const std::optional<py::array>& array, const char* name, int64_t rows,
                   int64_t classes, int64_t* stride) {
  using Element = std::conditional_t<std::is_same_v<T, float>, float, std::uint16_t>;
  if (!array) return nullptr;
  constexpr py::ssize_t kSize = sizeof(T);
  if (!array->dtype().is(py::dtype::of<Element>()) || array->ndim() != 2 ||
      array->shape(0) != rows || array->shape(1) != classes ||
      (array->size() > 0 && classes > 1 && array->strides(1) != kSize)) {
    throw std::invalid_argument(std::string(name) + ": expected [" + std::to_string(rows) + ", " +
                                std::to_string(classes) + "] with contiguous rows, got " +
                                describe(*array));
  }
  *stride = array->strides(0) / kSize;
  return array->data();
}

template <typename T>
void* gradient(const std::optional<py::array>& array, const char* name, int64_t rows,
               int64_t classes) {
  int64_t stride = classes;
  const void* data = matrix<T>(array, name, rows, classes, &stride);
  if (rows > 1 && stride != classes) {
    throw std::invalid_argument(std::string(name) + ": expected a contiguous gradient");
  }
  return const_cast<void*>(data);
}

// Each family of kernels adds its functions to the module.
void bind_pgd(py::module_& m);
void bind_kd(py::module_& m);
void bind_pair(py::module_& m);
void bind_apgd(py::module_& m);
void bind_norm(py::module_& m);
void bind_attack_gradient(py::module_& m);
void bind_crop_flip(py::module_& m);
void bind_fold(py::module_& m);
void bind_affine(py::module_& m);

}  // namespace ard::emu
