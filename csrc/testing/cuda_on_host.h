// The CUDA vocabulary that the kernels in csrc/cuda use, for an ordinary C++ compiler.
//
// Include this before any .cuh file. The kernels then run through ard::emu::launch() on the CPU,
// block by block or cluster by cluster, with barriers, warp shuffles and shared memory as on a GPU
// (block_engine.h).
// It shows wrong indices, races, deadlocks, reads of unwritten shared memory and arithmetic that
// differs; it cannot show coalescing, register use or speed.
//
// Stricter than a GPU on purpose: a thread that has returned does not count as arrived at a
// barrier, all threads must meet at the same source line, and every lane of a shuffle's mask must
// exist and arrive.
#pragma once

#if defined(__CUDACC__)
#error "cuda_on_host.h is for the host compiler; under nvcc the real thing is there"
#endif
#if defined(__FAST_MATH__)
#error "the emulator must keep IEEE semantics: build it without -ffast-math"
#endif

#define ARD_CUDA_ON_HOST 1

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "testing/block_engine.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// Blocks run one after another, so one static array serves them all; those of a cluster do not, and
// the engine refuses such arrays there.
#define __shared__ static
#define ARD_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(::ard::emu::dynamic_shared())

#define threadIdx (::ard::emu::thread_index())
#define blockIdx (::ard::emu::block_index())
#define blockDim (::ard::emu::block_size())
#define gridDim (::ard::emu::grid_size())

using dim3 = ::ard::emu::Dim3;
inline constexpr int warpSize = 32;

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::ard::emu::block_barrier({file, line});
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  ::ard::emu::warp_barrier(mask, {file, line});
}

namespace ard::emu {

inline void check_width(int width) {
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    throw LaunchError("shuffle: width must be a power of two from 1 to 32, got " +
                      std::to_string(width));
  }
}

/// Moves a value of 4 or 8 bytes through the warp, bit for bit.
template <typename T>
T shuffle(unsigned mask, T value, int source, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                "CUDA shuffles 4 and 8 byte arithmetic types");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_exchange(mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

/// kernel<<<grid, block, shared_bytes>>>(arguments...) in clusters of so many blocks along x,
/// finished on return.
template <typename... Parameters, typename... Arguments>
void launch_in_clusters(void (*kernel)(Parameters...), Dim3 grid, unsigned cluster, Dim3 block,
                        std::size_t shared_bytes, Arguments&&... arguments) {
  using Pack = std::tuple<void (*)(Parameters...), std::tuple<std::decay_t<Parameters>...>>;
  const Pack pack{kernel,
                  std::tuple<std::decay_t<Parameters>...>(std::forward<Arguments>(arguments)...)};
  run_grid(
      grid, cluster, block, shared_bytes,
      [](const void* raw) {
        const Pack& p = *static_cast<const Pack*>(raw);
        std::apply(std::get<0>(p), std::get<1>(p));
      },
      &pack);
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), Dim3 grid, Dim3 block, std::size_t shared_bytes,
            Arguments&&... arguments) {
  launch_in_clusters(kernel, grid, 1, block, shared_bytes, std::forward<Arguments>(arguments)...);
}

}  // namespace ard::emu

namespace ard::cuda {

// As in cuda/cluster.cuh.
inline unsigned cluster_blocks() { return emu::cluster_size(); }
inline unsigned cluster_rank() { return emu::cluster_block(); }
inline void cluster_arrive(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emu::cluster_arrive({file, line});
}
inline void cluster_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  emu::cluster_wait({file, line});
}
inline void store_to_block(double* mine, unsigned block, double value) {
  *static_cast<double*>(emu::in_block(mine, block)) = value;
}

}  // namespace ard::cuda

// A source outside the lane's segment gives the lane its own value back, as in CUDA.
template <typename T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                     const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::ard::emu::check_width(width);
  const int segment = ::ard::emu::lane_index() & ~(width - 1);
  return ::ard::emu::shuffle(mask, value, segment + (source & (width - 1)), {file, line});
}

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::ard::emu::check_width(width);
  const int lane = ::ard::emu::lane_index();
  const int source = lane ^ lane_mask;
  const bool reachable = source <= (lane | (width - 1));
  return ::ard::emu::shuffle(mask, value, reachable ? source : lane, {file, line});
}

template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::ard::emu::check_width(width);
  const int lane = ::ard::emu::lane_index();
  const int source = lane + static_cast<int>(delta);
  const bool reachable = source <= (lane | (width - 1));
  return ::ard::emu::shuffle(mask, value, reachable ? source : lane, {file, line});
}

template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  ::ard::emu::check_width(width);
  const int lane = ::ard::emu::lane_index();
  const int source = lane - static_cast<int>(delta);
  const bool reachable = source >= (lane & ~(width - 1));
  return ::ard::emu::shuffle(mask, value, reachable ? source : lane, {file, line});
}

// Rounding-mode intrinsics: IEEE single operations; -ffp-contract=off keeps them apart.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline std::uint32_t __umulhi(std::uint32_t a, std::uint32_t b) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(a) * b) >> 32);
}
template <typename T>
inline T __ldg(const T* address) {
  return *address;
}
