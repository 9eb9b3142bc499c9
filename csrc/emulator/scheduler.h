// Runs the warps of a cluster, each until its threads wait or are done, and ends what they wait
// for.
#pragma once

#include <random>

#include "emulator/kernel.h"
#include "emulator/machine.h"

namespace ard::emulator {

class Scheduler {
 public:
  Scheduler(Launch& launch, KernelData& kernel, std::mt19937_64& random)
      : launch_(launch), kernel_(kernel), code_(launch.code), random_(random) {}
  void run_cluster(std::vector<Warp*>& warps);

 private:
  void run_warp(Warp& warp);
  u32 pick(Warp& warp, u32* stop);
  void run_lanes(Warp& warp, u32 stop);
  bool control(Warp& warp, const Instruction& i, u32& pc);
  void wait(Warp& warp, u32& waiting, u32 pc);
  bool finish_warp(Warp& warp);
  bool finish_block(Block& block);
  bool finish_cluster();
  template <class F>
  void each_warp(F f);

  Launch& launch_;
  KernelData& kernel_;
  const Code& code_;
  std::mt19937_64& random_;
};

}  // namespace ard::emulator
