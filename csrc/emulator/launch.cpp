// A launch: its memory, the registers that threads find set, its clusters one after the other.
#include <algorithm>
#include <numeric>

#include "emulator/floats.h"
#include "emulator/kernel.h"
#include "emulator/scheduler.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

// The registers that a thread finds set, of all threads.
uint64_t value_of(Special special, const Launch& launch, const Block& block, const Warp& warp,
                  unsigned lane) {
  const LaunchShape& shape = launch.shape;
  switch (special) {
    case Special::tid:
      return warp.thread(lane);
    case Special::ntid:
      return shape.block;
    case Special::ctaid:
      return block.index;
    case Special::nctaid:
      return shape.grid;
    case Special::laneid:
      return lane;
    case Special::warpid:
      return warp.index;
    case Special::lanemask_eq:
      return uint32_t{1} << lane;
    case Special::lanemask_lt:
      return (uint32_t{1} << lane) - 1;
    case Special::lanemask_le:
      return (uint64_t{2} << lane) - 1;
    case Special::lanemask_gt:
      return static_cast<uint32_t>(~((uint64_t{2} << lane) - 1));
    case Special::lanemask_ge:
      return static_cast<uint32_t>(~((uint64_t{1} << lane) - 1));
    case Special::cluster_ctarank:
      return block.rank;
    case Special::cluster_nctarank:
      return shape.cluster;
    case Special::clusterid:
      return block.index / shape.cluster;
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
  const auto number = [](unsigned value) { return std::to_string(value); };
  if (!shape.grid || !shape.block) refuse("an empty grid or block");
  if (shape.block > 1024)
    refuse(number(shape.block) + " threads a block, at most 1024 are possible");
  if (!shape.cluster || shape.cluster > 16)
    refuse("clusters of " + number(shape.cluster) + " blocks");
  if (shape.grid % shape.cluster) {
    refuse("a grid of " + number(shape.grid) + " blocks in clusters of " + number(shape.cluster));
  }
  if (kernel.max_threads() && shape.block > kernel.max_threads()) {
    refuse(number(shape.block) + " threads a block, its launch bounds allow " +
           number(kernel.max_threads()));
  }
}

// Memory of all warps of a cluster, of which there is one at a time.
struct Storage {
  std::vector<uint64_t> registers;
  std::vector<uint8_t> local, local_written;

  Storage(size_t warps, const Code& code)
      // A signalling NaN, and no address: nothing should read it.
      : registers(warps * kLanes * code.registers, 0x7ff7dead7ff7deadu),
        local(warps * kLanes * code.local_bytes, 0xff),
        local_written(local.size()) {}
};

void start(Launch& launch, Block& block, unsigned cluster) {
  block.index = cluster * launch.shape.cluster + block.rank;
  block.live = block.threads;
  block.barriers = 0;
  const unsigned alignment = launch.code.dynamic_alignment;
  const unsigned dynamic = (launch.code.static_shared + alignment - 1) / alignment * alignment;
  block.shared.reset(dynamic + launch.shape.dynamic_shared, launch.code.granule);
  for (Warp& warp : block.warps) {
    warp.running = warp.present;
    warp.in_warp = warp.in_block = warp.in_cluster = 0;
    std::fill_n(warp.pc, kLanes, 0);
    std::fill_n(warp.clocks, kLanes, ThreadClock());
    warp.seen.clear();
    if (warp.local_written)
      std::fill_n(warp.local_written, kLanes * launch.code.local_bytes, uint8_t{0});
    for (const auto& [special, operand] : launch.code.specials) {
      for (unsigned lane = 0; lane < kLanes; ++lane) {
        warp.out(operand)[lane] = value_of(special, launch, block, warp, lane);
      }
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

void fault(const Warp& warp, unsigned lane, const Instruction& instruction,
           const std::string& what) {
  const Launch& launch = *warp.launch;
  const KernelData& kernel = launch.kernel.data();
  const size_t at = static_cast<size_t>(&instruction - launch.code.instructions.data());
  std::string where = ", at the end";
  if (at < kernel.places.size()) {
    where = ", line " + std::to_string(kernel.places[at].line) + " '" +
            std::string(kernel.places[at].text) + "'";
  }
  throw Fault(kernel.name + ", block " + std::to_string(warp.block->index) + ", thread " +
              std::to_string(warp.thread(lane)) + where + ": " + what);
}

void run(const Kernel& kernel, const LaunchShape& shape, void* const* parameters,
         const GlobalMemory& memory, const Options& options) {
  check(kernel, shape);
  KernelData& data = kernel.data();
  const Code& code = data.code(options.contract);
  ++data.launches;
  const ProcessorState state;
  Launch launch{kernel, code, shape, memory, data.module->memory, options, {}, {}, {}, {}, {}};
  launch.parameters.resize(data.parameter_bytes);
  for (size_t n = 0; n < data.parameter_sizes.size(); ++n) {
    std::memcpy(launch.parameters.data() + data.parameter_offsets[n], parameters[n],
                data.parameter_sizes[n]);
  }
  const unsigned warps = (shape.block + kLanes - 1) / kLanes;
  Storage storage(size_t{warps} * shape.cluster, code);
  launch.blocks.resize(shape.cluster);
  std::vector<Warp*> all;
  for (Block& block : launch.blocks) {
    block.rank = static_cast<unsigned>(&block - launch.blocks.data());
    block.threads = shape.block;
    block.warps.resize(warps);
    for (Warp& warp : block.warps) {
      warp.launch = &launch;
      warp.block = &block;
      warp.index = static_cast<unsigned>(&warp - block.warps.data());
      warp.registers = storage.registers.data() + all.size() * kLanes * code.registers;
      warp.constants = code.constants.data();
      if (code.local_bytes) {
        warp.local = storage.local.data() + all.size() * kLanes * code.local_bytes;
        warp.local_written = storage.local_written.data() + all.size() * kLanes * code.local_bytes;
      }
      const unsigned lanes = std::min(shape.block - warp.index * kLanes, kLanes);
      warp.present = lanes == kLanes ? ~uint32_t{0} : (uint32_t{1} << lanes) - 1;
      all.push_back(&warp);
    }
  }
  Scheduler scheduler(launch, data);
  std::vector<unsigned> clusters(shape.grid / shape.cluster);
  std::iota(clusters.begin(), clusters.end(), 0u);
  if (options.order == ThreadOrder::reverse) {
    std::reverse(clusters.begin(), clusters.end());
    std::reverse(all.begin(), all.end());
  }
  if (options.order == ThreadOrder::shuffled)
    std::shuffle(clusters.begin(), clusters.end(), scheduler.random());
  for (const unsigned cluster : clusters) {
    launch.epochs.clear();
    for (Block& block : launch.blocks) start(launch, block, cluster);
    scheduler.run_cluster(all);
  }
}

}  // namespace ard::emulator
