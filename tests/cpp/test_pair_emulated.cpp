// The CUDA kernels of TRADES and MART on the emulator against the CPU loop, on buffers that end
// where their data end: for the sanitizers. Accuracy is tested from Python.
#include <cmath>
#include <vector>

#include "buffers.h"
#include "check.h"
#include "cpu/pair_loss.h"
#include "testing/pair_on_host.h"

namespace ard::test {
namespace {

template <typename T>
bool close(Buffer<T>& got, Buffer<T>& expected, float tolerance) {
  for (std::size_t i = 0; i < got.size(); ++i) {
    const float a = to_float(got[i]), b = to_float(expected[i]);
    if (!(std::fabs(a - b) <= tolerance * (std::fabs(b) + 0.1f))) return false;
  }
  return true;
}

template <typename T>
void test_rows(bool mart, std::size_t rows, std::size_t classes, std::size_t offset,
               std::size_t gap) {
  const std::size_t stride = classes + gap;
  // The last row ends with its last class, not with its stride.
  const std::size_t size = rows ? (rows - 1) * stride + classes : 0;
  Buffer<T> adv(size, offset), clean(size, offset);
  for (std::size_t i = 0; i < size; ++i) {
    clean[i] = from_float<T>(static_cast<float>(generator() % 2000) * 0.004f - 4.0f);
    adv[i] = from_float<T>(static_cast<float>(generator() % 2000) * 0.004f - 4.0f);
  }
  Buffer<int64_t> labels(rows, 0);
  Buffer<float> weight(rows, 0);
  for (std::size_t i = 0; i < rows; ++i) {
    labels[i] = static_cast<int64_t>(i == 0 ? classes - 1 : i % classes);
    weight[i] = 0.5f + static_cast<float>(i);
  }
  PairLossParams p{};
  p.adv = adv.data();
  p.clean = clean.data();
  p.labels = labels.data();
  p.batch = static_cast<int64_t>(rows);
  p.classes = static_cast<int64_t>(classes);
  p.adv_stride = p.clean_stride = static_cast<int64_t>(stride);
  p.kl_weight = p.kl_grad_weight = 5.0f;
  p.ce_weight = p.ce_grad_weight = 1.0f;
  p.mart = mart;

  const float last_place = std::is_same_v<T, float> ? 1e-4f
                           : std::is_same_v<T, f16> ? 1e-3f
                                                    : 8e-3f;
  for (const bool with_grad : {true, false}) {
    const std::size_t grads = with_grad ? rows * classes : 0;
    const auto run = [&](Buffer<float>& loss, Buffer<T>& grad_adv, Buffer<T>& grad_clean,
                         auto&& kernel) {
      p.weight = with_grad ? weight.data() : nullptr;
      p.loss_rows = loss.data();
      p.grad_adv = with_grad ? grad_adv.data() : nullptr;
      p.grad_clean = with_grad ? grad_clean.data() : nullptr;
      kernel();
    };
    Buffer<float> expected(rows, 0);
    Buffer<T> expected_adv(grads, 0), expected_clean(grads, 0);
    run(expected, expected_adv, expected_clean,
        [&] { cpu::pair_loss(p, dtype_of<T>(), 0, p.batch); });
    for (int variant = 0; variant < 3; ++variant) {
      Buffer<float> loss(rows, 0);
      Buffer<T> grad_adv(grads, 0), grad_clean(grads, 0);
      run(loss, grad_adv, grad_clean, [&] {
        emu::pair_loss<T>(p, variant == 0 ? emu::pair_loss_plan<T>(p)
                                          : emu::pair_loss_block_plan<T>(p, 64, variant == 1));
      });
      CHECK(close(loss, expected, 2e-5f));
      CHECK(close(grad_adv, expected_adv, last_place));
      CHECK(close(grad_clean, expected_clean, last_place));
    }
  }
}

template <typename T>
void test_loss(bool mart) {
  test_rows<T>(mart, 0, 10, 0, 0);
  test_rows<T>(mart, 1, 2, 0, 0);
  test_rows<T>(mart, 5, 10, 0, 0);   // a tail of warps in the last block
  test_rows<T>(mart, 3, 16, 0, 0);   // vectors
  test_rows<T>(mart, 3, 16, 0, 16);  // vectors, strided rows
  test_rows<T>(mart, 3, 16, 1, 0);   // an unaligned start
  test_rows<T>(mart, 3, 33, 3, 5);
  test_rows<T>(mart, 2, 264, 0, 0);
  test_rows<T>(mart, 2, 1025, 0, 0);  // the launcher gives these to a block
  test_rows<T>(mart, 2, 1032, 0, 0);
}

}  // namespace
}  // namespace ard::test

int main() {
  using namespace ard;
  for (const bool mart : {false, true}) {
    test::test_loss<float>(mart);
    test::test_loss<f16>(mart);
    test::test_loss<bf16>(mart);
  }
  return test::finish("test_pair_emulated");
}
