// The CUDA kernels of attack_gradient on the emulator against the CPU loop, on buffers that end
// where their data end: for the sanitizers. Accuracy is tested from Python.
#include <cmath>
#include <vector>

#include "buffers.h"
#include "check.h"
#include "cpu/attack_gradient.h"
#include "testing/attack_gradient_on_host.h"

namespace ard::test {
namespace {

template <typename T>
bool close(Buffer<T>& got, Buffer<float>& got_scale, Buffer<T>& expected,
           Buffer<float>& expected_scale, float tolerance) {
  for (std::size_t i = 0; i < got.size(); ++i) {
    // Where an entry is next to a power of two the two scales may be neighbours.
    const std::size_t row = i / (got.size() / got_scale.size());
    const float a = to_float(got[i]) / got_scale[row];
    const float b = to_float(expected[i]) / expected_scale[row];
    const bool near = a == b || std::fabs(a - b) <= tolerance * std::fmax(std::fabs(b), 1e-2f);
    if (!near && !(a != a && b != b)) return false;
  }
  return true;
}

template <typename T>
void test_rows(AttackLoss loss, std::size_t rows, std::size_t classes, std::size_t offset,
               std::size_t gap, bool odd_values, bool scaled) {
  const std::size_t stride = classes + gap;
  Buffer<T> logits((rows - 1) * stride + classes, offset);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    // Multiples of 1/8: equal in every dtype, and often equal to one another.
    const auto draw = static_cast<unsigned>(generator());
    logits[i] = from_float<T>(odd_values ? random_value(5.0f)
                                         : static_cast<float>(draw % 97) * 0.125f - 6.0f);
  }
  Buffer<int64_t> labels(rows, 0), targets(rows, 0);
  for (std::size_t i = 0; i < rows; ++i) {
    labels[i] = static_cast<int64_t>(i == 0 ? classes - 1 : generator() % classes);
    targets[i] = static_cast<int64_t>(generator() % classes);
  }
  AttackGradientParams p{};
  p.logits = logits.data();
  p.labels = labels.data();
  p.target_classes = loss == AttackLoss::dlr_targeted ? targets.data() : nullptr;
  p.batch = static_cast<int64_t>(rows);
  p.classes = static_cast<int64_t>(classes);
  p.logits_stride = static_cast<int64_t>(stride);
  p.loss = loss;
  p.kappa = 3.0f;

  Buffer<T> expected(rows * classes, 0);
  Buffer<float> expected_loss(rows, 0);
  Buffer<bool> expected_correct(rows, 0);
  p.grad = expected.data();
  p.loss_rows = expected_loss.data();
  p.correct = expected_correct.data();
  Buffer<float> ones(rows, 0), expected_scale(rows, 0);
  for (std::size_t i = 0; i < rows; ++i) ones[i] = expected_scale[i] = 1.0f;
  p.grad_scale = scaled ? expected_scale.data() : nullptr;
  cpu::attack_gradient(p, dtype_of<T>(), 0, p.batch);

  const float tolerance = loss != AttackLoss::ce     ? 0.0f
                          : std::is_same_v<T, float> ? 1e-5f
                          : std::is_same_v<T, f16>   ? 1e-3f
                                                     : 8e-3f;
  for (int variant = 0; variant < 4; ++variant) {
    Buffer<T> grad(rows * classes, 0);
    Buffer<float> loss_rows(rows, 0), scale(rows, 0);
    for (std::size_t i = 0; i < rows; ++i) scale[i] = 1.0f;
    Buffer<bool> correct(rows, 0);
    p.grad_scale = scaled ? scale.data() : nullptr;
    p.grad = grad.data();
    p.loss_rows = variant < 3 ? loss_rows.data() : nullptr;
    p.correct = variant < 3 ? correct.data() : nullptr;
    emu::attack_gradient<T>(p, variant % 3 == 0
                                   ? emu::attack_gradient_plan<T>(p)
                                   : emu::attack_gradient_block_plan<T>(p, 96, variant == 1));
    CHECK(close(grad, scale, expected, expected_scale, tolerance));
    if (variant == 3) continue;
    CHECK(close(loss_rows, ones, expected_loss, ones, 2e-6f));
    for (std::size_t i = 0; i < rows; ++i) CHECK(correct[i] == expected_correct[i]);
  }
}

template <typename T>
void test_loss(AttackLoss loss) {
  for (const int kind : {0, 1, 2, 3}) {
    const bool odd_values = kind % 2, scaled = kind / 2;
    test_rows<T>(loss, 1, 4, 0, 0, odd_values, scaled);
    test_rows<T>(loss, 5, 10, 0, 0, odd_values, scaled);   // a tail of warps in the last block
    test_rows<T>(loss, 3, 16, 0, 0, odd_values, scaled);   // vectors
    test_rows<T>(loss, 3, 16, 0, 16, odd_values, scaled);  // vectors, strided rows
    test_rows<T>(loss, 3, 16, 1, 0, odd_values, scaled);   // an unaligned start
    test_rows<T>(loss, 3, 33, 3, 5, odd_values, scaled);
    test_rows<T>(loss, 2, 264, 0, 0, odd_values, scaled);
    test_rows<T>(loss, 2, 1025, 0, 0, odd_values, scaled);  // the launcher gives these to a block
    test_rows<T>(loss, 2, 1032, 0, 0, odd_values, scaled);
  }
}

}  // namespace
}  // namespace ard::test

int main() {
  using namespace ard;
  for (const AttackLoss loss :
       {AttackLoss::ce, AttackLoss::margin, AttackLoss::dlr, AttackLoss::dlr_targeted}) {
    test::test_loss<float>(loss);
    test::test_loss<f16>(loss);
    test::test_loss<bf16>(loss);
  }
  return test::finish("test_attack_gradient_emulated");
}
