// The CUDA kernels of the Auto-PGD step on the emulator against the CPU loops, over a few
// iterations with every kind of decision; see test_kernels_emulated.cpp for what the sanitizers
// watch.
#include "buffers.h"
#include "check.h"
#include "cpu/kernels.h"
#include "testing/apgd_on_host.h"

namespace ard {
namespace {

using namespace test;

constexpr std::size_t kFields = sizeof(ApgdRecord) / sizeof(float);

// Offsets of x_adv, x_prev, x_best, grad_best, x_fooled, grad and x from a 16-byte boundary.
struct Offsets {
  std::size_t at[7];
};

constexpr Offsets kAligned{{0, 0, 0, 0, 0, 0, 0}};

template <typename T>
struct Run {
  Run(std::size_t batch, std::size_t sample, const Offsets& o)
      : x_adv(batch * sample, o.at[0]),
        x_prev(batch * sample, o.at[1]),
        x_best(batch * sample, o.at[2]),
        x_fooled(batch * sample, o.at[4]),
        state(kFields * batch, 0),
        state_out(kFields * batch, 0),
        grad_best(batch * sample, o.at[3]) {}

  /// The next call of the step: what it wrote last is what it reads now.
  void prepare(ApgdParams& p) {
    p.x_adv = (swapped ? x_prev : x_adv).data();
    p.x_prev = (swapped ? x_adv : x_prev).data();
    p.x_best = x_best.data();
    p.grad_best = grad_best.data();
    p.x_fooled = x_fooled.data();
    p.state = (swapped ? state_out : state).data();
    p.state_out = (swapped ? state : state_out).data();
    swapped = !swapped;
  }

  Buffer<float> x_adv, x_prev, x_best, x_fooled, state, state_out;
  Buffer<T> grad_best;
  bool swapped = false;
};

bool near(Buffer<float>& a, Buffer<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= 1e-6f)) return false;
  }
  return true;
}

template <typename T>
bool same_values(Buffer<T>& a, Buffer<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (float_to_bits(to_float(a[i])) != float_to_bits(to_float(b[i]))) return false;
  }
  return true;
}

/// A cluster of 0 blocks: the launcher's plan.
struct Geometry {
  int cluster = 0, threads = 0;
  bool cached = true;
};

template <typename T>
void test_run(std::size_t batch, std::size_t sample, const Offsets& offsets, bool l2,
              const Geometry& geometry = {}) {
  const std::size_t count = batch * sample;
  Buffer<float> x(count, offsets.at[6]), loss(batch, 0), radii(batch, 0);
  Buffer<T> grad(count, offsets.at[5]);
  Buffer<bool> correct(batch, 0);
  for (std::size_t i = 0; i < count; ++i)
    x[i] = std::fabs(random_value(0.5f)) > 0.25f ? 0.7f : 0.2f;
  for (std::size_t i = 0; i < batch; ++i) radii[i] = 0.02f * static_cast<float>(i % 4);
  Run<T> emulated(batch, sample, offsets), on_cpu(batch, sample, kAligned);
  for (std::size_t i = 0; i < count; ++i) emulated.x_adv[i] = on_cpu.x_adv[i] = x[i] + 0.01f;

  ApgdParams p{};
  p.x = x.data();
  p.loss_rows = loss.data();
  p.correct = correct.data();
  p.eps_per_sample = radii.data();
  p.batch = static_cast<int64_t>(batch);
  p.sample_numel = static_cast<int64_t>(sample);
  p.upper = 1.0f;
  for (int call = 0; call < 5; ++call) {
    // An L2 step with an infinity or a NaN among the pixels makes the sample NaN; gradients may.
    fill(grad, 1e-3f);
    for (std::size_t i = 0; i < batch; ++i) {
      loss[i] = random_value(1.0f);
      correct[i] = generator() % 2 == 0;
    }
    p.grad = call < 4 ? grad.data() : nullptr;
    p.first = call == 0;
    p.checkpoint = call == 2 || call == 3;
    p.most_increases = 0.75f * static_cast<float>(call == 2 ? 2 : 1);
    p.momentum = p.first ? 1.0f : 0.75f;
    p.one_minus_momentum = p.first ? 0.0f : 0.25f;

    emulated.prepare(p);
    if (!p.grad) {
      emu::apgd_finish(p);
    } else if (l2) {
      emu::apgd_l2_step<T>(
          p, geometry.cluster
                 ? emu::apgd_l2_plan<T>(p, geometry.cluster, geometry.threads, geometry.cached)
                 : cuda::plan_apgd_l2_step(p, sizeof(T), emu::kSampleDevice));
    } else {
      emu::apgd_linf_step<T>(p);
    }
    on_cpu.prepare(p);
    if (l2) {
      cpu::apgd_l2_step(p, dtype_of<T>(), 0, p.batch);
    } else {
      cpu::apgd_linf_step(p, dtype_of<T>(), 0, p.batch * cpu::apgd_linf_pieces(p.sample_numel));
    }
    Buffer<float>* const mine[] = {&emulated.x_adv, &emulated.x_prev, &emulated.x_best,
                                   &emulated.x_fooled};
    Buffer<float>* const theirs[] = {&on_cpu.x_adv, &on_cpu.x_prev, &on_cpu.x_best,
                                     &on_cpu.x_fooled};
    for (int i = 0; i < 4; ++i) {
      if (call == 0 && i == 1 && !p.grad) continue;
      CHECK(l2 ? near(*mine[i], *theirs[i]) : same(*mine[i], *theirs[i]));
    }
    CHECK(same(call % 2 ? emulated.state : emulated.state_out,
               call % 2 ? on_cpu.state : on_cpu.state_out));
    CHECK(same_values(emulated.grad_best, on_cpu.grad_best));
    if (!l2) continue;
    // From the same points again, so that what rounds differently does not grow.
    for (int i = 0; i < 4; ++i) {
      std::memcpy(mine[i]->data(), theirs[i]->data(), count * sizeof(float));
    }
  }
}

template <typename T>
void test_linf() {
  for (const std::size_t sample : {0, 1, 3, 8, 33, 1024, 2051}) {
    test_run<T>(3, sample, kAligned, false);
  }
  test_run<T>(0, 8, kAligned, false);
  test_run<T>(400, 64, kAligned, false);   // fewer blocks than vectors would fill
  test_run<T>(1, 10000, kAligned, false);  // several blocks of a sample
  for (std::size_t tensor = 0; tensor < 7; ++tensor) {
    Offsets offsets = kAligned;
    offsets.at[tensor] = 1;
    test_run<T>(2, 32, offsets, false);
  }
}

template <typename T>
void test_l2() {
  for (const std::size_t sample : {0, 1, 7, 8, 200, 1024}) test_run<T>(2, sample, kAligned, true);
  test_run<T>(0, 8, kAligned, true);
  test_run<T>(1, 4096, kAligned, true);  // the launcher gives it a cluster
  test_run<T>(2, 32, Offsets{{1, 0, 3, 1, 0, 0, 2}}, true);
  for (const int cluster : {1, 2, 4}) {
    for (const bool cached : {false, true}) {
      test_run<T>(2, 333, kAligned, true, Geometry{cluster, 64, cached});
      test_run<T>(2, 64, kAligned, true, Geometry{cluster, 32, cached});
    }
  }
}

}  // namespace
}  // namespace ard

int main() {
  for (const auto order : {ard::emu::Order::kForward, ard::emu::Order::kShuffled}) {
    ard::emu::set_order(order, 11);
    ard::test_linf<float>();
    ard::test_linf<ard::f16>();
    ard::test_linf<ard::bf16>();
    ard::test_l2<float>();
    ard::test_l2<ard::f16>();
    ard::test_l2<ard::bf16>();
  }
  return ard::test::finish("test_apgd_emulated");
}
