// A launch: its memory, the registers that threads find set, its clusters one after the other.
#include <algorithm>
#include <numeric>

#include "emulator/floats.h"
#include "emulator/scheduler.h"

namespace ard::emulator {
namespace {

u64 value_of(Special special, const Launch& launch, const Warp& warp, unsigned lane) {
  const LaunchShape& shape = launch.shape;
  const u64 bit = u64{1} << lane, all = ~u32{0};
  switch (special) {
    case Special::tid:
      return warp.thread(lane);
    case Special::ntid:
      return shape.block;
    case Special::ctaid:
      return warp.block->index;
    case Special::nctaid:
      return shape.grid;
    case Special::laneid:
      return lane;
    case Special::warpid:
      return warp.index;
    case Special::lanemask_eq:
      return bit;
    case Special::lanemask_lt:
      return bit - 1;
    case Special::lanemask_le:
      return 2 * bit - 1;
    case Special::lanemask_gt:
      return all & ~(2 * bit - 1);
    case Special::lanemask_ge:
      return all & ~(bit - 1);
    case Special::cluster_ctarank:
      return warp.block->rank;
    case Special::cluster_nctarank:
      return shape.cluster;
    case Special::clusterid:
      return warp.block->index / shape.cluster;
    case Special::nclusterid:
      return shape.grid / shape.cluster;
    case Special::zero:
      return 0;
    default:
      return 1;
  }
}

void check(const Kernel& kernel, const LaunchShape& shape) {
  const auto refuse = [&](const std::string& what) {
    throw Fault("launch of " + kernel.name() + ": " + what);
  };
  const std::string threads = std::to_string(shape.block) + " threads a block, ";
  const std::string clusters = "clusters of " + std::to_string(shape.cluster) + " blocks";
  if (!shape.grid || !shape.block) refuse("an empty grid or block");
  if (shape.block > 1024) refuse(threads + "at most 1024 are possible");
  if (!shape.cluster || shape.cluster > 16) refuse(clusters);
  if (shape.grid % shape.cluster)
    refuse("a grid of " + std::to_string(shape.grid) + " blocks in " + clusters);
  if (kernel.max_threads() && shape.block > kernel.max_threads()) {
    refuse(threads + "its launch bounds allow " + std::to_string(kernel.max_threads()));
  }
}

// Memory of all threads of a cluster; clusters use it one after the other.
struct Storage {
  std::vector<u64> registers;
  std::vector<u8> local, local_written;
  std::vector<Warp*> warps;

  explicit Storage(Launch& launch) {
    const unsigned count = (launch.shape.block + kLanes - 1) / kLanes;
    const size_t lanes = size_t{count} * launch.shape.cluster * kLanes;
    registers.assign(lanes * launch.code.registers,
                     0x7ff7dead7ff7deadu);  // signalling NaN, and no address
    local.assign(lanes * launch.code.local_bytes, 0xff);
    local_written.resize(local.size());
    launch.blocks.resize(launch.shape.cluster);
    for (Block& block : launch.blocks) {
      block.rank = unsigned(&block - launch.blocks.data());
      block.threads = launch.shape.block;
      block.warps.resize(count);
      for (Warp& warp : block.warps) add(launch, block, warp);
    }
  }

 private:
  void add(Launch& launch, Block& block, Warp& warp) {
    const size_t before = warps.size() * kLanes;
    warp.launch = &launch;
    warp.block = &block;
    warp.index = unsigned(&warp - block.warps.data());
    warp.registers = registers.data() + before * launch.code.registers;
    warp.constants = launch.code.constants.data();
    warp.local = local.data() + before * launch.code.local_bytes;
    warp.local_written = local_written.data() + before * launch.code.local_bytes;
    const unsigned lanes = std::min(launch.shape.block - warp.index * kLanes, kLanes);
    warp.present = u32((u64{1} << lanes) - 1);
    warps.push_back(&warp);
  }
};

void start(Launch& launch, Block& block, unsigned cluster) {
  block.index = cluster * launch.shape.cluster + block.rank;
  block.live = block.threads;
  block.barriers = 0;
  block.shared.reset(launch.code.dynamic_offset() + launch.shape.dynamic_shared,
                     launch.code.granule);
  for (Warp& warp : block.warps) {
    warp.running = warp.present;
    std::fill_n(warp.pc, kLanes, 0);
    std::fill_n(warp.clocks, kLanes, ThreadClock());
    warp.seen.clear();
    std::fill_n(warp.local_written, size_t{kLanes} * launch.code.local_bytes, u8{0});
    for (const auto& [special, slot] : launch.code.specials) {
      for (unsigned lane = 0; lane < kLanes; ++lane)
        warp.out(slot)[lane] = value_of(special, launch, warp, lane);
    }
  }
}

// Arithmetic as a GPU's: rounds to nearest, keeps subnormal numbers, whatever the calling thread
// has set.
class ProcessorState {
 public:
  ProcessorState() : old_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~ProcessorState() { _mm_setcsr(old_); }

 private:
  unsigned old_;
};

}  // namespace

void fault(const Warp& warp, unsigned lane, const Instruction& i, const std::string& what) {
  const KernelData& kernel = warp.launch->kernel.data();
  const Place& place = kernel.places[size_t(&i - warp.launch->code.instructions.data())];
  throw Fault(kernel.name + ", block " + std::to_string(warp.block->index) + ", thread " +
              std::to_string(warp.thread(lane)) + ", line " + std::to_string(place.line) + " '" +
              std::string(place.text) + "': " + what);
}

void run(const Kernel& kernel, const LaunchShape& shape, void* const* parameters,
         const GlobalMemory& memory, const Options& options) {
  check(kernel, shape);
  KernelData& data = kernel.data();
  const Code& code = data.code(options.contract);
  const ProcessorState state;
  std::mt19937_64 random(options.seed * 7919 + ++data.launches);
  Launch launch{kernel, code, shape, options, {&memory, &data.module->memory}, {}, {}, {}, {}};
  launch.parameters.resize(data.parameter_bytes);
  for (const Parameter& each : data.parameters) {
    std::memcpy(launch.parameters.data() + each.offset, *parameters++, each.bytes);
  }
  Storage storage(launch);
  std::vector<unsigned> clusters(shape.grid / shape.cluster);
  std::iota(clusters.begin(), clusters.end(), 0u);
  if (options.order == ThreadOrder::reverse) {
    std::reverse(clusters.begin(), clusters.end());
    std::reverse(storage.warps.begin(), storage.warps.end());
  }
  if (options.order == ThreadOrder::shuffled)
    std::shuffle(clusters.begin(), clusters.end(), random);
  Scheduler scheduler(launch, data, random);
  for (const unsigned cluster : clusters) {
    launch.epochs.clear();
    for (Block& block : launch.blocks) start(launch, block, cluster);
    scheduler.run_cluster(storage.warps);
  }
}

}  // namespace ard::emulator
