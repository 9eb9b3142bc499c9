// The emulator itself: indices, barriers, shuffles, garbage in shared memory, and the faults it
// must report instead of hanging or passing.
#include <cmath>
#include <numeric>
#include <vector>

#include "check.h"
#include "sample_kernels.h"

// In namespace ard, where the emulator looks for shared arrays.
namespace ard {
namespace {

using emu::Dim3;
using emu::launch;
using emu::LaunchError;

__global__ void index_kernel(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += static_cast<int>(thread + 1);
}

__global__ void shuffle_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* row = out + lane * 8;
  row[0] = __shfl_sync(0xffffffffu, lane, 5);
  row[1] = __shfl_sync(0xffffffffu, lane, 35);  // modulo the width, as in CUDA
  row[2] = __shfl_xor_sync(0xffffffffu, lane, 3);
  row[3] = __shfl_down_sync(0xffffffffu, lane, 4);
  row[4] = __shfl_up_sync(0xffffffffu, lane, 4);
  row[5] = __shfl_sync(0xffffffffu, lane, 2, 8);
  row[6] = __shfl_down_sync(0xffffffffu, lane, 4, 8);
  row[7] = __shfl_xor_sync(0xffffffffu, lane, 8, 8);
  if (lane < 8) row[7] = __shfl_sync(0x000000ffu, lane, 7);  // a part of the warp
}

__global__ void garbage_kernel(float* out) {
  static constexpr int kUnused = 2;
  __shared__ float values[4];
  __shared__ int counts[1];
  ARD_DYNAMIC_SHARED(double, dynamic);
  out[blockIdx.x * 3 + 0] = values[1];
  out[blockIdx.x * 3 + 1] = static_cast<float>(counts[0]);
  out[blockIdx.x * 3 + 2] = static_cast<float>(dynamic[1]);
  values[1] = 3.0f;
  counts[0] = kUnused;
  dynamic[1] = 4.0;
}

__global__ void early_return_kernel() {
  if (threadIdx.x >= 32) return;
  __syncthreads();
}

__global__ void fault_in_block_1_kernel() {
  if (blockIdx.x != 1 || threadIdx.x != 0) __syncthreads();
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void missing_lane_kernel() {
  if (threadIdx.x != 7) (void)__shfl_sync(0xffffffffu, 1, 0);
}

__global__ void mixed_kernel() {
  if (threadIdx.x < 16) {
    (void)__shfl_sync(0xffffffffu, 1, 0);
  } else {
    __syncwarp();
  }
}

__global__ void full_warp_kernel() { (void)__shfl_xor_sync(0xffffffffu, 1.0f, 16); }
__global__ void outside_source_kernel() {
  if (threadIdx.x < 4) (void)__shfl_sync(0xfu, 1, 9);
}
__global__ void foreign_mask_kernel() { (void)__shfl_sync(0xfu, 1, 0); }
__global__ void width_kernel() { (void)__shfl_sync(0xffffffffu, 1, 0, 12); }
__global__ void nested_kernel() { launch(full_warp_kernel, 1, 32, 0); }
__global__ void nothing_kernel() {}

__global__ void cluster_index_kernel(int* out) {
  ARD_DYNAMIC_SHARED(double, mine);
  *mine = static_cast<double>(blockIdx.x);  // every block has its own
  cuda::cluster_arrive();
  cuda::cluster_wait();
  out[blockIdx.x] = *mine == static_cast<double>(blockIdx.x)
                        ? static_cast<int>(10 * cuda::cluster_rank() + cuda::cluster_blocks())
                        : -1;
}

__global__ void static_in_cluster_kernel(int* out) {
  __shared__ int shared_by_mistake[4];
  if (cuda::cluster_rank() != 0) return;
  shared_by_mistake[threadIdx.x] = 1;
  out[threadIdx.x] = shared_by_mistake[threadIdx.x];
}

__global__ void block_without_cluster_barrier_kernel() {
  if (cuda::cluster_rank() == 0) {
    cuda::cluster_arrive();
    cuda::cluster_wait();
  }
}

__global__ void two_arrivals_kernel() {
  cuda::cluster_arrive();
  cuda::cluster_arrive();
}

__global__ void wait_alone_kernel() { cuda::cluster_wait(); }

__global__ void two_cluster_barriers_kernel() {
  if (cuda::cluster_rank() == 0) {
    cuda::cluster_arrive();
  } else {
    cuda::cluster_arrive();
  }
  cuda::cluster_wait();
}

/// Block 0 writes to block `other` once block 1 has left, or anywhere it likes.
__global__ void late_store_kernel(unsigned other, double* elsewhere) {
  ARD_DYNAMIC_SHARED(double, mine);
  cuda::cluster_arrive();
  cuda::cluster_wait();
  if (cuda::cluster_rank() == 1) return;
  for (int i = 0; i < 3; ++i) __syncthreads();
  cuda::store_to_block(elsewhere ? elsewhere : mine, other, 1.0);
}

void test_indices() {
  std::vector<int> out(3 * 2 * 2 * 24);
  launch(index_kernel, Dim3(3, 2, 2), Dim3(4, 3, 2), 0, out.data());
  bool right = true;
  for (std::size_t i = 0; i < out.size(); ++i) right &= out[i] == static_cast<int>(i % 24) + 1;
  CHECK(right);
}

void test_shuffles() {
  std::vector<int> out(32 * 8);
  launch(shuffle_kernel, 1, 32, 0, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    const int* row = &out[static_cast<std::size_t>(lane) * 8];
    CHECK(row[0] == 5 && row[1] == 3 && row[2] == (lane ^ 3));
    CHECK(row[3] == (lane + 4 < 32 ? lane + 4 : lane));
    CHECK(row[4] == (lane - 4 >= 0 ? lane - 4 : lane));
    CHECK(row[5] == lane / 8 * 8 + 2);
    CHECK(row[6] == (lane % 8 + 4 < 8 ? lane + 4 : lane));
    // An xor across the segment reaches downwards only (CUDA C++ programming guide, __shfl_xor).
    CHECK(row[7] == (lane < 8 ? 7 : (lane & 8) ? lane ^ 8 : lane));
  }
}

template <typename T>
void test_sum() {
  std::vector<T> in(10007), out(5);
  std::iota(in.begin(), in.end(), T(-4000));
  launch(sample::block_sum_kernel<T>, 5, 96, 0, in.data(), out.data(), 10007);
  const double expected = std::accumulate(in.begin(), in.end(), 0.0);
  CHECK(std::fabs(std::accumulate(out.begin(), out.end(), 0.0) - expected) <= 1e-7 * expected);
}

void test_barriers() {
  for (unsigned n : {1u, 31u, 32u, 33u, 256u, 1024u}) {
    std::vector<float> data(n);
    std::iota(data.begin(), data.end(), 0.0f);
    launch(sample::reverse_kernel<true, true>, 1, n, n * sizeof(float), data.data(), 3);
    bool right = true;
    for (unsigned i = 0; i < n; ++i) right &= data[i] == static_cast<float>(n - 1 - i);
    CHECK(right);
  }
  std::vector<float> data(64);
  std::iota(data.begin(), data.end(), 0.0f);
  launch(sample::rotate_warp_kernel<true>, 1, 64, 0, data.data());
  CHECK(data[0] == 1 && data[31] == 0 && data[32] == 33 && data[63] == 32);
}

void test_garbage() {
  std::vector<float> out(6);
  launch(garbage_kernel, 2, 1, 16, out.data());
  for (int block = 0; block < 2; ++block) {
    CHECK(std::isnan(out[block * 3]));
    CHECK(out[block * 3 + 1] == -1.0f);
    CHECK(std::isnan(out[block * 3 + 2]));
  }
}

#define FAULT(part, ...) \
  CHECK(test::contains(test::message_of<LaunchError>([&] { launch(__VA_ARGS__); }), part))

void test_faults() {
  FAULT("deadlock, 32 have returned, 32 wait at __syncthreads", early_return_kernel, 1, 64, 0);
  FAULT("block (1, 0, 0) of (3, 1, 1), 64 threads", fault_in_block_1_kernel, 3, 64, 0);
  FAULT("divergent barrier", two_barriers_kernel, 1, 64, 0);
  FAULT("deadlock, 1 have returned, 31 wait in the shuffle", missing_lane_kernel, 1, 32, 0);
  FAULT("divergent warp", mixed_kernel, 1, 32, 0);
  FAULT("lanes that do not exist, the warp has 16", full_warp_kernel, 1, 48, 0);
  FAULT("lane 9, which is not in the mask", outside_source_kernel, 1, 32, 0);
  FAULT("is not in its own mask", foreign_mask_kernel, 1, 32, 0);
  FAULT("width must be a power of two", width_kernel, 1, 32, 0);
  FAULT("cannot launch another", nested_kernel, 1, 1, 0);
  FAULT("1 to 1024 threads", nothing_kernel, 1, 1025, 0);
  FAULT("1 to 1024 threads", nothing_kernel, 1, 0, 0);
  FAULT("a grid has", nothing_kernel, 0, 1, 0);
  FAULT("a grid has", nothing_kernel, Dim3(1, 65536), 1, 0);
  FAULT("dynamic shared memory", nothing_kernel, 1, 1, 1 << 20);
  test_indices();  // a failed launch leaves nothing behind
}

#define CLUSTER_FAULT(part, ...) \
  CHECK(test::contains(          \
      test::message_of<LaunchError>([&] { emu::launch_in_clusters(__VA_ARGS__); }), part))

void test_clusters() {
  std::vector<int> out(12);
  emu::launch_in_clusters(cluster_index_kernel, 12, 4, 1, sizeof(double), out.data());
  for (int b = 0; b < 12; ++b) CHECK(out[static_cast<std::size_t>(b)] == 10 * (b % 4) + 4);
  for (const unsigned blocks : {1u, 2u, 8u}) {
    std::vector<double> sums(2 * blocks);
    emu::launch_in_clusters(sample::cluster_sum_kernel<true, true>, 2 * blocks, blocks, 32,
                            2 * blocks * sizeof(double), sums.data(), 3);
    const double first = blocks * (blocks + 1) / 2.0;  // and every later sum is of equal values
    for (const double sum : sums) CHECK(sum == first * blocks * blocks);
  }
  CLUSTER_FAULT("may not have started", sample::cluster_sum_kernel<false, true>, 2, 2, 32,
                4 * sizeof(double), nullptr, 1);
  CLUSTER_FAULT("static __shared__ array", static_in_cluster_kernel, 2, 2, 4, 0, out.data());
  CLUSTER_FAULT("32 wait at the cluster barrier", block_without_cluster_barrier_kernel, 2, 2, 32,
                0);
  CLUSTER_FAULT("without having waited", two_arrivals_kernel, 2, 2, 1, 0);
  CLUSTER_FAULT("without having arrived", wait_alone_kernel, 2, 2, 1, 0);
  CLUSTER_FAULT("divergent cluster barrier", two_cluster_barriers_kernel, 2, 2, 1, 0);
  CLUSTER_FAULT("may have ended", late_store_kernel, 2, 2, 2, sizeof(double), 1u, nullptr);
  CLUSTER_FAULT("block 2 of a cluster of 2", late_store_kernel, 2, 2, 2, sizeof(double), 2u,
                nullptr);
  double outside = 0.0;
  CLUSTER_FAULT("not in this block's dynamic shared memory", late_store_kernel, 2, 2, 2,
                sizeof(double), 0u, &outside);
  CLUSTER_FAULT("a cluster has 1 to 8 blocks", nothing_kernel, 16, 16, 1, 0);
  CLUSTER_FAULT("a cluster has 1 to 8 blocks", nothing_kernel, 3, 2, 1, 0);
}

// Without ThreadSanitizer a missing barrier shows as results that depend on the order of threads.
void test_orders() {
  std::vector<std::vector<float>> results;
  for (const auto order : {emu::Order::kForward, emu::Order::kReverse, emu::Order::kShuffled}) {
    emu::set_order(order, 7);
    test_indices();
    test_shuffles();
    test_sum<float>();
    test_barriers();
    test_faults();
    test_clusters();
#if !defined(ARD_EMU_TSAN)  // which would report the race: that is tested apart
    std::vector<float> data(64);
    std::iota(data.begin(), data.end(), 0.0f);
    launch(sample::reverse_kernel<false, true>, 1, 64, 64 * sizeof(float), data.data(), 1);
    results.push_back(data);
#endif
  }
#if !defined(ARD_EMU_TSAN)
  bool differ = false;
  for (int i = 0; i < 64; ++i) differ |= !(results[0][i] == results[1][i]);
  CHECK(differ);
#endif
  emu::set_order(emu::Order::kForward);
}

void run_all() {
  test_indices();
  test_shuffles();
  test_sum<float>();
  test_sum<double>();
  test_sum<int>();
  test_barriers();
  test_garbage();
  test_faults();
  test_clusters();
  test_orders();
}

}  // namespace
}  // namespace ard

int main() {
  ard::run_all();
  return ard::test::finish("test_emulator");
}
