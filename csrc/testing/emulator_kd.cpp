#include "testing/emulator_arrays.h"
#include "testing/kd_on_host.h"

namespace ard::emu {
namespace {

void py_kd_loss(const py::array& student, const py::array& teacher,
                const std::optional<py::array>& clean, const std::optional<py::array>& labels,
                const std::optional<py::array>& weight,
                const std::optional<py::array>& teacher_temperature,
                const std::optional<py::array>& clean_teacher_temperature, const std::string& dtype,
                const py::array& loss_rows, const std::optional<py::array>& grad_student,
                const std::optional<py::array>& grad_clean,
                const std::optional<py::array>& grad_teacher,
                const std::optional<py::array>& grad_scale, float inv_temperature,
                float inv_teacher_temperature, float inv_clean_teacher_temperature, float kl_weight,
                float clean_weight, float kl_grad_weight, float clean_grad_weight,
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
    p.weight = data_or_null<float>(weight, "weight", rows);
    p.teacher_temperature = data_or_null<float>(teacher_temperature, "teacher_temperature", rows);
    p.clean_teacher_temperature =
        data_or_null<float>(clean_teacher_temperature, "clean_teacher_temperature", rows);
    p.loss_rows = data_of<float>(loss_rows, "loss_rows", rows);
    p.grad_student = gradient<T>(grad_student, "grad_student", rows, classes);
    p.grad_clean = gradient<T>(grad_clean, "grad_clean", rows, classes);
    p.grad_teacher = gradient<T>(grad_teacher, "grad_teacher", rows, classes);
    p.grad_scale = data_or_null<float>(grad_scale, "grad_scale", rows);
    p.batch = rows;
    p.classes = classes;
    p.inv_temperature = inv_temperature;
    p.inv_teacher_temperature = inv_teacher_temperature;
    p.inv_clean_teacher_temperature = inv_clean_teacher_temperature;
    p.kl_weight = kl_weight;
    p.clean_weight = clean_weight;
    p.kl_grad_weight = kl_grad_weight;
    p.clean_grad_weight = clean_grad_weight;
    const cuda::RowPlan automatic = cuda::plan_kd_loss(p, sizeof(T), kMaxSharedBytes);
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

void bind_kd(py::module_& m) {
  using py::arg;
  m.def("kd_loss", &py_kd_loss, py::kw_only(), arg("student"), arg("teacher"), arg("clean"),
        arg("labels"), arg("weight"), arg("teacher_temperature"), arg("clean_teacher_temperature"),
        arg("dtype"), arg("loss_rows"), arg("grad_student"), arg("grad_clean"), arg("grad_teacher"),
        arg("grad_scale"), arg("inv_temperature"), arg("inv_teacher_temperature"),
        arg("inv_clean_teacher_temperature"), arg("kl_weight"), arg("clean_weight"),
        arg("kl_grad_weight"), arg("clean_grad_weight"), arg("variant"));
  m.def("sum_rows", &py_sum_rows, arg("rows"));
  m.def("scale_rows", &py_scale_rows, py::kw_only(), arg("grad"), arg("dtype"), arg("classes"),
        arg("scale"), arg("factor"));
}

}  // namespace ard::emu
