// The kernels over whole samples on the emulator against the CPU loops, in one block and in
// clusters, on buffers that end where their data end: for the sanitizers.
#include <vector>

#include "buffers.h"
#include "check.h"
#include "cpu/norm_steps.h"
#include "testing/norm_on_host.h"

namespace ard {
namespace {

using test::Buffer;

struct Geometry {
  int cluster, threads;
  bool cached;
};

// A cluster of 0 blocks stands for the launcher's own plan.
constexpr Geometry kGeometries[] = {{0, 0, false}, {1, 32, true},  {1, 64, false},
                                    {2, 32, true}, {4, 32, false}, {8, 32, true}};
constexpr std::size_t kOffsets[][4] = {{0, 0, 0, 0}, {3, 3, 3, 3}, {0, 1, 0, 0}, {4, 8, 0, 2}};

template <typename T>
cuda::NormStepPlan plan_for(const NormStepParams& p, bool mifgsm, const Geometry& g) {
  return g.cluster ? emu::norm_step_plan<T>(p, mifgsm, g.cluster, g.threads, g.cached)
                   : cuda::plan_norm_step(p, sizeof(T), mifgsm, emu::kSampleDevice);
}

template <typename T>
void test_steps(std::size_t batch, std::size_t numel, const std::size_t (&offsets)[4],
                const Geometry& geometry, bool per_sample) {
  const std::size_t n = batch * numel;
  Buffer<float> x_adv(n, offsets[0]), x(n, offsets[2]), momentum(n, offsets[3]);
  Buffer<float> steps(batch, 0), radii(batch, 0);
  Buffer<T> grad(n, offsets[1]);
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = std::fabs(test::random_value(1.0f));
    if (!(x[i] <= 1.0f)) x[i] = 0.5f;
    x_adv[i] = x[i] + static_cast<float>(i % 7) * 0.01f;
    momentum[i] = static_cast<float>(i % 5) * 0.1f - 0.2f;
  }
  test::fill(grad, 1e-3f);
  for (std::size_t i = 0; i < batch; ++i) {
    steps[i] = 0.1f * static_cast<float>(i);
    radii[i] = 0.3f - 0.1f * static_cast<float>(i);
  }
  NormStepParams p{};
  p.grad = grad.data();
  p.x = x.data();
  p.step_size_per_sample = per_sample ? steps.data() : nullptr;
  p.eps_per_sample = per_sample ? radii.data() : nullptr;
  p.batch = static_cast<int64_t>(batch);
  p.sample_numel = static_cast<int64_t>(numel);
  p.step_size = 0.2f;
  p.eps = 0.25f;
  p.decay = 0.9f;
  p.direction = numel % 2 ? 1.0f : -1.0f;
  p.upper = 1.0f;
  const Dtype dtype = test::dtype_of<T>();
  for (const bool mifgsm : {false, true}) {
    Buffer<float> stepped = x_adv.copy(), expected = x_adv.copy();
    Buffer<float> momentum_stepped = momentum.copy(), momentum_expected = momentum.copy();
    p.x_adv = stepped.data();
    p.momentum = momentum_stepped.data();
    const cuda::NormStepPlan plan = plan_for<T>(p, mifgsm, geometry);
    mifgsm ? emu::mifgsm_step<T>(p, plan) : emu::pgd_l2_step<T>(p, plan);
    p.x_adv = expected.data();
    p.momentum = momentum_expected.data();
    mifgsm ? cpu::mifgsm_step(p, dtype, 0, p.batch) : cpu::pgd_l2_step(p, dtype, 0, p.batch);
    CHECK(test::same(stepped, expected));
    CHECK(test::same(momentum_stepped, momentum_expected));
  }
}

template <typename T>
void test_all_steps() {
  for (const Geometry& geometry : kGeometries) {
    for (const auto& offsets : kOffsets) {
      for (const std::size_t numel : {1, 5, 8, 64, 129, 264}) {
        test_steps<T>(3, numel, offsets, geometry, numel % 2 == 0);
      }
    }
  }
  test_steps<T>(1, 3072, kOffsets[0], kGeometries[0], false);
}

void test_select() {
  const float edges[] = {NAN, HUGE_VALF, -HUGE_VALF, 0.0f, 1.0f};
  for (const std::size_t numel : {0, 1, 4, 63, 64, 4100}) {
    for (const std::size_t offset : {0, 1}) {
      const std::size_t batch = std::size(edges) * std::size(edges);
      Buffer<float> best(batch * numel, offset), candidate(batch * numel, 0);
      Buffer<float> best_loss(batch, 0), loss(batch, 0), out(batch, 0), expected_loss(batch, 0);
      test::fill(best, 1.0f);
      test::fill(candidate, 1.0f);
      for (std::size_t i = 0; i < batch; ++i) {
        best_loss[i] = edges[i / std::size(edges)];
        loss[i] = edges[i % std::size(edges)];
      }
      Buffer<float> expected = best.copy();
      SelectParams p{best.data(),
                     candidate.data(),
                     best_loss.data(),
                     loss.data(),
                     out.data(),
                     static_cast<int64_t>(batch),
                     static_cast<int64_t>(numel),
                     offset == 1};
      emu::select_best(p);
      p.best = expected.data();
      p.best_loss_out = expected_loss.data();
      cpu::select_best(p, 0, p.batch);
      CHECK(test::same(best, expected));
      CHECK(test::same(out, expected_loss));
    }
  }
}

// What the plan promises for the shapes of the data sets, on devices with and without clusters.
void test_plans() {
  const cuda::SampleDevice h100 = emu::kSampleDevice, a100{163 * 1024, 108, false};
  const auto plan = [](int64_t batch, int64_t numel, const cuda::SampleDevice& device) {
    NormStepParams p{};
    p.batch = batch;
    p.sample_numel = numel;
    return cuda::plan_norm_step(p, 4, false, device);
  };
  const auto digits = plan(128, 64, h100);
  CHECK(digits.vector && digits.sample.cached && digits.sample.cluster == 1);
  CHECK(digits.sample.threads == 32 && digits.sample.blocks == 128);
  const auto cifar = plan(128, 3072, h100);
  CHECK(cifar.sample.cached && cifar.sample.cluster == 1 && cifar.sample.threads == 512);
  // Few samples: more blocks for each, as long as each has something to do.
  CHECK(plan(8, 3072, h100).sample.cluster == 2);
  // An image of 224 x 224 stays on chip only in the shared memory of eight blocks.
  const auto imagenet = plan(16, 150528, h100);
  CHECK(imagenet.sample.cached && imagenet.sample.cluster == 8 && imagenet.sample.threads == 1024);
  CHECK(imagenet.sample.shared_bytes <= h100.max_shared);
  const auto streamed = plan(16, 150528, a100);
  CHECK(!streamed.sample.cached && streamed.sample.cluster == 1 && streamed.sample.threads == 1024);
  CHECK(streamed.sample.shared_bytes == static_cast<int64_t>(sizeof(cuda::SampleScratch)));
  CHECK(!plan(2, 3 * 512 * 512, h100).sample.cached);
  CHECK(!plan(4, 75, h100).vector);
}

}  // namespace
}  // namespace ard

int main() {
  for (const auto order : {ard::emu::Order::kForward, ard::emu::Order::kShuffled}) {
    ard::emu::set_order(order, 11);
    ard::test_all_steps<float>();
    ard::test_all_steps<ard::f16>();
    ard::test_all_steps<ard::bf16>();
    ard::test_select();
  }
  ard::test_plans();
  return ard::test::finish("test_norm_emulated");
}
