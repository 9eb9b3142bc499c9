// Python module _emulator: the CUDA kernels on NumPy arrays, for the tests. Never in the wheel.
//
// float16 and bfloat16 come as uint16 with the type's name beside them. Arrays are used where they
// lie, so a test chooses the alignment by slicing.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "testing/kernels_on_host.h"

namespace py = pybind11;

namespace ard::emu {
namespace {

std::string describe(const py::array& array) {
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

void set_order_by_name(const std::string& name, std::uint64_t seed) {
  if (name == "forward") {
    set_order(Order::kForward, seed);
  } else if (name == "reverse") {
    set_order(Order::kReverse, seed);
  } else if (name == "shuffled") {
    set_order(Order::kShuffled, seed);
  } else {
    throw std::invalid_argument("order: expected forward, reverse or shuffled, got " + name);
  }
}

void py_pgd_linf_step(const py::array& x_adv, const py::array& grad, const std::string& grad_dtype,
                      const py::array& x, const std::optional<py::array>& step_size_per_sample,
                      const std::optional<py::array>& eps_per_sample, int64_t batch,
                      float step_size, float eps, float direction, float lower, float upper) {
  PgdLinfParams p{};
  p.numel = x_adv.size();
  p.sample_numel = batch ? p.numel / batch : 0;
  p.x_adv = data_of<float>(x_adv, "x_adv", p.numel);
  p.x = data_of<float>(x, "x", p.numel);
  p.step_size_per_sample = data_or_null<float>(step_size_per_sample, "step_size_per_sample", batch);
  p.eps_per_sample = data_or_null<float>(eps_per_sample, "eps_per_sample", batch);
  p.step_size = step_size;
  p.eps = eps;
  p.direction = direction;
  p.lower = lower;
  p.upper = upper;
  with_dtype(grad_dtype, [&](auto type) {
    p.grad = float_data<decltype(type)>(grad, "grad", p.numel);
    pgd_linf_step<decltype(type)>(p);
  });
}

void py_random_start(const py::array& out, const py::array& x,
                     const std::optional<py::array>& eps_per_sample, const py::array& seed,
                     const std::optional<py::array>& sample_ids, int64_t batch, int64_t channels,
                     float eps, float std, float lower, float upper, bool normal) {
  RandomStartParams p{};
  p.x = data_of<float>(x, "x", x.size());
  p.out = data_of<float>(out, "out", x.size());
  p.eps_per_sample = data_or_null<float>(eps_per_sample, "eps_per_sample", batch);
  p.seed = data_of<int64_t>(seed, "seed", 1);
  p.sample_ids = data_or_null<int64_t>(sample_ids, "sample_ids", batch);
  p.batch = batch;
  p.sample_numel = batch ? x.size() / batch : 0;
  p.channels = channels;
  p.eps = eps;
  p.std = std;
  p.lower = lower;
  p.upper = upper;
  p.normal = normal;
  random_start(p);
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

void py_kd_loss(const py::array& student, const py::array& teacher,
                const std::optional<py::array>& clean, const std::optional<py::array>& labels,
                const std::string& dtype, const py::array& loss_rows,
                const std::optional<py::array>& grad_student,
                const std::optional<py::array>& grad_clean, float inv_temperature, float kl_weight,
                float ce_weight, float kl_grad_weight, float ce_grad_weight,
                const std::string& variant) {
  if (student.ndim() != 2) throw std::invalid_argument("student: expected [B, C]");
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t rows = student.shape(0), classes = student.shape(1);
    KdLossParams p{};
    p.student = matrix<T>(student, "student", rows, classes, &p.student_stride);
    p.teacher = matrix<T>(teacher, "teacher", rows, classes, &p.teacher_stride);
    p.clean = matrix<T>(clean, "clean", rows, classes, &p.clean_stride);
    p.labels = data_or_null<int64_t>(labels, "labels", rows);
    p.loss_rows = data_of<float>(loss_rows, "loss_rows", rows);
    p.grad_student = gradient<T>(grad_student, "grad_student", rows, classes);
    p.grad_clean = gradient<T>(grad_clean, "grad_clean", rows, classes);
    p.batch = rows;
    p.classes = classes;
    p.inv_temperature = inv_temperature;
    p.kl_weight = kl_weight;
    p.ce_weight = ce_weight;
    p.kl_grad_weight = kl_grad_weight;
    p.ce_grad_weight = ce_grad_weight;
    const cuda::KdLossPlan automatic = cuda::plan_kd_loss(p, sizeof(T), kMaxSharedBytes);
    if (variant == "auto" || (variant == "warp" && automatic.warp)) {
      kd_loss<T>(p, automatic);
    } else if (variant == "block") {
      kd_loss<T>(p, block_plan<T>(p, 64, true));
    } else if (variant == "block_uncached") {
      kd_loss<T>(p, block_plan<T>(p, 64, false));
    } else {
      throw std::invalid_argument("variant: expected auto, warp (up to " +
                                  std::to_string(cuda::kWarpRowClasses) +
                                  " classes), block or block_uncached, got " + variant);
    }
  });
}

float py_sum_rows(const py::array& rows) {
  float total = 0.0f;
  sum_rows(data_of<float>(rows, "rows", rows.size()), rows.size(), &total);
  return total;
}

void py_scale_rows(const py::array& grad, const std::string& dtype, int64_t classes,
                   const py::array& scale, float factor) {
  const int64_t numel = grad.size();
  const bool per_row = scale.size() != 1;
  const float* by = data_of<float>(scale, "scale", per_row ? numel / classes : 1);
  with_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    scale_rows(static_cast<T*>(float_data<T>(grad, "grad", numel)), numel, classes, by, per_row,
               factor);
  });
}

}  // namespace
}  // namespace ard::emu

PYBIND11_MODULE(_emulator, m) {
  using namespace ard::emu;
  using py::arg;
  m.doc() = "The CUDA kernels of ard_fast on NumPy arrays, run by the host emulator.";
  py::register_exception<LaunchError>(m, "LaunchError");
  m.def("set_order", &set_order_by_name, arg("order"), arg("seed") = 0);
  m.def("pgd_linf_step_", &py_pgd_linf_step, py::kw_only(), arg("x_adv"), arg("grad"),
        arg("grad_dtype"), arg("x"), arg("step_size_per_sample"), arg("eps_per_sample"),
        arg("batch"), arg("step_size"), arg("eps"), arg("direction"), arg("lower"), arg("upper"));
  m.def("random_start", &py_random_start, py::kw_only(), arg("out"), arg("x"),
        arg("eps_per_sample"), arg("seed"), arg("sample_ids"), arg("batch"), arg("channels"),
        arg("eps"), arg("std"), arg("lower"), arg("upper"), arg("normal"));
  m.def("kd_loss", &py_kd_loss, py::kw_only(), arg("student"), arg("teacher"), arg("clean"),
        arg("labels"), arg("dtype"), arg("loss_rows"), arg("grad_student"), arg("grad_clean"),
        arg("inv_temperature"), arg("kl_weight"), arg("ce_weight"), arg("kl_grad_weight"),
        arg("ce_grad_weight"), arg("variant"));
  m.def("sum_rows", &py_sum_rows, arg("rows"));
  m.def("scale_rows", &py_scale_rows, py::kw_only(), arg("grad"), arg("dtype"), arg("classes"),
        arg("scale"), arg("factor"));
}
