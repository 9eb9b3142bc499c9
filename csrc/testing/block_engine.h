// Runs the threads of one CUDA block, or of one thread-block cluster, after another on the CPU, as
// fibers of a single OS thread.
//
// Why fibers and not OS threads: a switch costs well under a microsecond, a barrier that cannot be
// completed is seen at once instead of hanging, and every run is repeatable. ThreadSanitizer knows
// fibers: it keeps one clock for each, a switch orders nothing, and only __syncthreads,
// __syncwarp and the cluster barrier do. A missing barrier is thus reported from the order of
// events alone, without needing an unlucky schedule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace ard::emu {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr std::size_t count() const { return static_cast<std::size_t>(x) * y * z; }
};

/// What is wrong with a launch or with how a kernel synchronises; launch() throws it.
struct LaunchError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Order in which blocks start, and in which the threads of a block run between two barriers.
/// A race-free kernel gives the same bits under all of them.
enum class Order { kForward, kReverse, kShuffled };
void set_order(Order order, std::uint64_t seed = 0);

/// Index of a source line with a __syncthreads, or the first half of a cluster barrier, that
/// threads shall walk through without waiting, in the order in which the run meets such lines; -1
/// (the default, or the value of the environment variable ARD_EMU_SKIP_BARRIER) skips none. This
/// plants the fault that a racecheck must find.
void set_skipped_barrier(int index);
/// "file:line" of every such line met so far, in order.
std::vector<std::string> barrier_sites();

/// Runs `body(arguments)` once for every thread of the grid. `cluster` blocks along x run together.
/// `shared_bytes` of dynamic shared memory are allocated for each block and filled with 0xff
/// (a NaN as float, double, half and bfloat16; -1 as an integer), as are the static arrays.
/// Throws LaunchError for sizes that no GPU accepts and for broken synchronisation.
void run_grid(Dim3 grid, unsigned cluster, Dim3 block, std::size_t shared_bytes,
              void (*body)(const void*), const void* arguments);

// What follows is called by kernels, through the CUDA names in cuda_on_host.h.
struct Site {
  const char* file;
  int line;
};
const Dim3& thread_index();
const Dim3& block_index();
const Dim3& block_size();
const Dim3& grid_size();
void* dynamic_shared();
unsigned cluster_size();
unsigned cluster_block();
void block_barrier(Site site);
/// The halves of the cluster's barrier: all threads of all blocks arrive, then each waits for all.
void cluster_arrive(Site site);
void cluster_wait(Site site);
/// Where another block of the cluster has what this block has at `mine` in its dynamic shared
/// memory.
void* in_block(void* mine, unsigned block);
void warp_barrier(std::uint32_t mask, Site site);
/// All lanes of `mask` arrive with a value; each leaves with the value of lane `source`.
std::uint64_t warp_exchange(std::uint32_t mask, std::uint64_t value, int source, Site site);
int lane_index();

}  // namespace ard::emu
