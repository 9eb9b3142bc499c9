// The CUDA kernels on the emulator against the CPU loops, on buffers that end where their data end:
// for AddressSanitizer (any access outside), UndefinedBehaviorSanitizer (misaligned vectors) and
// ThreadSanitizer (races). Accuracy against other formulas is tested from Python.
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "buffers.h"
#include "check.h"
#include "cpu/kernels.h"
#include "testing/kd_on_host.h"
#include "testing/pgd_on_host.h"

namespace ard {
namespace {

using namespace test;

constexpr std::size_t kOffsets[][3] = {{0, 0, 0}, {1, 1, 1}, {3, 3, 3}, {8, 8, 8},
                                       {0, 1, 0}, {2, 6, 1}, {5, 1, 5}};

template <typename GradT>
void test_step() {
  for (const auto& offsets : kOffsets) {
    for (const std::size_t n : {0, 1, 3, 4, 7, 8, 9, 33, 255, 1025, 2051}) {
      Buffer<float> x_adv(n, offsets[0]), x(n, offsets[2]);
      Buffer<GradT> grad(n, offsets[1]);
      fill(x_adv, 1.0f);
      fill(grad, 1e-3f);
      fill(x, 1.0f);
      Buffer<float> expected = x_adv.copy();
      PgdLinfParams p{};
      p.x_adv = x_adv.data();
      p.grad = grad.data();
      p.x = x.data();
      p.numel = static_cast<int64_t>(n);
      p.step_size = 2 / 255.0f;
      p.eps = 8 / 255.0f;
      p.direction = n % 2 ? 1.0f : -1.0f;
      p.upper = 1.0f;
      emu::pgd_linf_step<GradT>(p);
      p.x_adv = expected.data();
      cpu::pgd_linf_step(p, dtype_of<GradT>(), 0, p.numel);
      CHECK(same(x_adv, expected));
    }
  }
  for (const std::size_t sample : {1, 3, 8, 100, 1024}) {
    const std::size_t batch = 5;
    Buffer<float> x_adv(batch * sample, 0), x(batch * sample, 0), steps(batch, 0), radii(batch, 0);
    Buffer<GradT> grad(batch * sample, 0);
    fill(x_adv, 1.0f);
    fill(grad, 1e-3f);
    fill(x, 1.0f);
    for (std::size_t i = 0; i < batch; ++i) {
      steps[i] = 0.01f * static_cast<float>(i);
      radii[i] = 0.05f - 0.01f * static_cast<float>(i);
    }
    Buffer<float> expected = x_adv.copy();
    PgdLinfParams p{};
    p.x_adv = x_adv.data();
    p.grad = grad.data();
    p.x = x.data();
    p.step_size_per_sample = steps.data();
    p.eps_per_sample = radii.data();
    p.numel = static_cast<int64_t>(batch * sample);
    p.sample_numel = static_cast<int64_t>(sample);
    p.direction = 1.0f;
    p.upper = 1.0f;
    emu::pgd_linf_step<GradT>(p);
    p.x_adv = expected.data();
    cpu::pgd_linf_step(p, dtype_of<GradT>(), 0, p.numel);
    CHECK(same(x_adv, expected));
  }
}

void test_random_start() {
  struct Shape {
    std::size_t batch, sample, channels, offset_x, offset_out;
  };
  const Shape shapes[] = {{0, 12, 1, 0, 0},   {1, 1, 1, 0, 0},  {3, 5, 1, 0, 0},  {2, 8, 1, 0, 0},
                          {2, 8, 1, 1, 0},    {2, 8, 1, 0, 3},  {3, 21, 3, 0, 0}, {2, 48, 3, 0, 0},
                          {1, 1027, 1, 0, 0}, {300, 7, 1, 0, 0}};
  for (const Shape& s : shapes) {
    for (const bool normal : {false, true}) {
      Buffer<float> x(s.batch * s.sample, s.offset_x), out(s.batch * s.sample, s.offset_out);
      Buffer<float> expected(s.batch * s.sample, 0), radii(s.batch, 0);
      Buffer<int64_t> seed(1, 0), ids(s.batch, 0);
      fill(x, 1.0f);
      seed[0] = -12345;
      for (std::size_t i = 0; i < s.batch; ++i) {
        ids[i] = static_cast<int64_t>(7 * i) - 3;
        radii[i] = 0.01f * static_cast<float>(i + 1);
      }
      RandomStartParams p{};
      p.out = out.data();
      p.x = x.data();
      p.eps_per_sample = normal ? nullptr : radii.data();
      p.seed = seed.data();
      p.sample_ids = normal ? nullptr : ids.data();
      p.batch = static_cast<int64_t>(s.batch);
      p.sample_numel = static_cast<int64_t>(s.sample);
      p.channels = static_cast<int64_t>(s.channels);
      p.eps = 0.1f;
      p.std = 0.02f;
      p.upper = 1.0f;
      p.normal = normal;
      emu::random_start(p);
      p.out = expected.data();
      cpu::random_start(p, 0, p.batch * ((p.sample_numel + 3) / 4));
      CHECK(same(out, expected));
    }
  }
}

/// |a - b| within `relative` of b's size or of `scale`, value by value.
template <typename T>
bool close(Buffer<T>& a, Buffer<T>& b, float relative, float scale) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const float x = to_float(a[i]), y = to_float(b[i]);
    if (!(std::fabs(x - y) <= relative * (std::fabs(y) + scale))) return false;
  }
  return true;
}

template <typename T>
void test_kd_loss(std::size_t rows, std::size_t classes, std::size_t offset, std::size_t padding,
                  bool with_clean, bool with_grad, bool two_students = false) {
  const std::size_t stride = classes + padding;
  // The last row ends with its last class, not with its stride.
  const std::size_t size = rows ? (rows - 1) * stride + classes : 0;
  Buffer<T> student(size, offset), teacher(size, offset), clean(size, offset);
  Buffer<int64_t> labels(rows, 0);
  for (std::size_t i = 0; i < size; ++i) {
    teacher[i] = from_float<T>(static_cast<float>(generator() % 2000) * 0.004f - 4.0f);
    student[i] =
        from_float<T>(to_float(teacher[i]) + static_cast<float>(generator() % 200) * 0.01f);
    clean[i] = from_float<T>(static_cast<float>(generator() % 2000) * 0.01f);
  }
  for (std::size_t i = 0; i < rows; ++i) labels[i] = static_cast<int64_t>(i % classes);

  KdLossParams p{};
  p.student = student.data();
  p.teacher = teacher.data();
  p.clean = with_clean ? clean.data() : nullptr;
  p.labels = with_clean && !two_students ? labels.data() : nullptr;
  Buffer<float> factors(rows, 0);
  for (std::size_t i = 0; i < rows; ++i) factors[i] = 0.5f + static_cast<float>(i);
  if (two_students) p.weight = p.teacher_temperature = p.clean_teacher_temperature = factors.data();
  p.batch = static_cast<int64_t>(rows);
  p.classes = static_cast<int64_t>(classes);
  p.student_stride = p.teacher_stride = p.clean_stride = static_cast<int64_t>(stride);
  p.inv_temperature = p.inv_teacher_temperature = p.inv_clean_teacher_temperature = 0.25f;
  p.kl_weight = 16.0f;
  p.clean_weight = 0.5f;
  p.kl_grad_weight = 4.0f;
  p.clean_grad_weight = 0.5f;

  const auto run = [&](Buffer<float>& loss, Buffer<T>& grad, Buffer<T>& grad_clean,
                       Buffer<T>& grad_teacher, auto&& kernel) {
    p.loss_rows = loss.data();
    p.grad_student = with_grad ? grad.data() : nullptr;
    p.grad_clean = with_grad && with_clean ? grad_clean.data() : nullptr;
    p.grad_teacher = with_grad && !two_students ? grad_teacher.data() : nullptr;
    kernel();
  };
  const std::size_t grads = with_grad ? rows * classes : 0;
  const std::size_t clean_grads = with_clean ? grads : 0;
  Buffer<float> expected(rows, 0);
  const std::size_t teacher_grads = two_students ? 0 : grads;
  Buffer<T> expected_grad(grads, 0), expected_clean(clean_grads, 0);
  Buffer<T> expected_teacher(teacher_grads, 0);
  run(expected, expected_grad, expected_clean, expected_teacher,
      [&] { cpu::kd_loss(p, dtype_of<T>(), 0, p.batch); });
  const float last_place = std::is_same_v<T, float> ? 1e-4f
                           : std::is_same_v<T, f16> ? 1e-3f
                                                    : 8e-3f;
  for (int variant = 0; variant < 3; ++variant) {
    Buffer<float> loss(rows, 0);
    Buffer<T> grad(grads, 0), grad_clean(clean_grads, 0), grad_teacher(teacher_grads, 0);
    run(loss, grad, grad_clean, grad_teacher, [&] {
      emu::kd_loss<T>(p, variant == 0 ? cuda::plan_kd_loss(p, sizeof(T), emu::kMaxSharedBytes)
                                      : emu::block_plan<T>(p, 64, variant == 1));
    });
    CHECK(close(loss, expected, 2e-5f, 0.0f));
    CHECK(close(grad, expected_grad, last_place, 1e-4f));
    CHECK(close(grad_clean, expected_clean, last_place, 1e-4f));
    CHECK(close(grad_teacher, expected_teacher, last_place, 1e-4f));
  }
  if (!with_grad || !rows) return;
  // Each row of the gradients times a power of two, which is divided out: next to one the kernel's
  // and the CPU's may be neighbours.
  const auto scaled = [&](Buffer<T>& grad, Buffer<T>& grad_teacher, auto&& kernel) {
    Buffer<float> loss(rows, 0), scale(rows, 0);
    Buffer<T> grad_clean(clean_grads, 0);
    p.grad_scale = scale.data();
    run(loss, grad, grad_clean, grad_teacher, kernel);
    Buffer<float> out(grad.size() + grad_teacher.size(), 0);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::size_t at = i % grad.size();
      out[i] = to_float(i < grad.size() ? grad[at] : grad_teacher[at]) / scale[at / classes];
    }
    return out;
  };
  Buffer<float> reference =
      scaled(expected_grad, expected_teacher, [&] { cpu::kd_loss(p, dtype_of<T>(), 0, p.batch); });
  for (int variant = 0; variant < 3; ++variant) {
    Buffer<T> grad(grads, 0), grad_teacher(teacher_grads, 0);
    Buffer<float> got = scaled(grad, grad_teacher, [&] {
      emu::kd_loss<T>(p, variant == 0 ? cuda::plan_kd_loss(p, sizeof(T), emu::kMaxSharedBytes)
                                      : emu::block_plan<T>(p, 64, variant == 1));
    });
    CHECK(close(got, reference, last_place, 1e-4f));
  }
}

template <typename T>
void test_kd_losses() {
  test_kd_loss<T>(0, 10, 0, 0, true, true);
  test_kd_loss<T>(1, 2, 0, 0, false, true);
  test_kd_loss<T>(5, 10, 0, 0, true, true);   // a tail of warps in the last block
  test_kd_loss<T>(3, 16, 0, 0, true, true);   // vectors
  test_kd_loss<T>(3, 16, 0, 16, true, true);  // vectors, strided rows
  test_kd_loss<T>(3, 16, 1, 0, true, true);   // an unaligned start
  test_kd_loss<T>(3, 33, 3, 5, false, false);
  test_kd_loss<T>(2, 264, 0, 0, true, false);
  test_kd_loss<T>(2, 1025, 0, 0, true, true);  // the launcher gives these to a block
  test_kd_loss<T>(2, 1032, 0, 0, false, true);
  test_kd_loss<T>(5, 10, 0, 0, true, true, true);
  test_kd_loss<T>(3, 16, 0, 16, true, true, true);
  test_kd_loss<T>(3, 33, 3, 5, true, false, true);
  test_kd_loss<T>(2, 1025, 0, 0, true, true, true);
}

void test_sum_rows() {
  for (const std::size_t n : {0, 1, 31, 33, 257, 3000}) {
    Buffer<float> rows(n, 0), total(1, 0);
    double expected = 0;
    for (std::size_t i = 0; i < n; ++i) {
      rows[i] = static_cast<float>(generator() % 1000) * 0.37f;
      expected += static_cast<double>(rows[i]);
    }
    emu::sum_rows(rows.data(), static_cast<int64_t>(n), total.data());
    CHECK(std::fabs(total[0] - expected) <= 1e-7 * expected);
  }
}

template <typename T>
void test_scale_rows() {
  struct Shape {
    std::size_t rows, classes, offset;
  };
  for (const Shape& s :
       {Shape{0, 4, 0}, {1, 1, 0}, {3, 10, 0}, {4, 8, 0}, {3, 24, 1}, {5, 129, 0}}) {
    for (const bool per_row : {false, true}) {
      for (const float factor : {1.0f, -0.37f}) {
        Buffer<T> grad(s.rows * s.classes, s.offset);
        Buffer<float> scale(per_row ? s.rows : 1, 0);
        fill(grad, 2.0f);
        for (std::size_t i = 0; i < scale.size(); ++i) scale[i] = i % 2 ? 0.3f : 1.0f;
        Buffer<T> expected = grad.copy();
        const auto classes = static_cast<int64_t>(s.classes);
        emu::scale_rows(grad.data(), static_cast<int64_t>(grad.size()), classes, scale.data(),
                        per_row, factor);
        cpu::scale_rows(expected.data(), dtype_of<T>(), classes, scale.data(), per_row, factor, 0,
                        static_cast<int64_t>(s.rows));
        for (std::size_t i = 0; i < grad.size(); ++i) {
          const float a = to_float(grad[i]), b = to_float(expected[i]);
          CHECK(float_to_bits(a) == float_to_bits(b) || (a != a && b != b));
        }
      }
    }
  }
}

}  // namespace
}  // namespace ard

int main() {
  for (const auto order : {ard::emu::Order::kForward, ard::emu::Order::kShuffled}) {
    ard::emu::set_order(order, 11);
    ard::test_step<float>();
    ard::test_step<ard::f16>();
    ard::test_step<ard::bf16>();
    ard::test_random_start();
    ard::test_kd_losses<float>();
    ard::test_kd_losses<ard::f16>();
    ard::test_kd_losses<ard::bf16>();
    ard::test_sum_rows();
    ard::test_scale_rows<float>();
    ard::test_scale_rows<ard::f16>();
    ard::test_scale_rows<ard::bf16>();
  }
  return ard::test::finish("test_kernels_emulated");
}
