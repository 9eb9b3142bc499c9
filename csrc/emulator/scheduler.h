// Runs the warps of a cluster, each until its threads wait or are done, and ends what they wait
// for.
#pragma once

#include <random>
#include <vector>

#include "emulator/kernel.h"
#include "emulator/warp.h"

namespace ard::emulator {

class Scheduler {
 public:
  Scheduler(Launch& launch, KernelData& kernel)
      : launch_(launch),
        kernel_(kernel),
        code_(launch.code),
        random_(launch.options.seed * 7919 + kernel.launches) {}

  void run_cluster(std::vector<Warp*>& warps);
  std::mt19937_64& random() { return random_; }

 private:
  void run_warp(Warp& warp);
  uint32_t pick(Warp& warp, uint32_t* stop);
  void run_lanes(Warp& warp, uint32_t lanes, uint32_t stop);
  bool control(Warp& warp, const Instruction& i, uint32_t& pc);
  void branch(Warp& warp, uint32_t taken, uint32_t target, uint32_t next);
  void wait(Warp& warp, uint32_t& waiting, uint32_t pc);
  bool finish_warp(Warp& warp);
  void check_mask(const Warp& warp, unsigned lane, const Instruction& i, uint32_t mask) const;
  bool finish_block(Block& block);
  void reduce(Block& block, const Instruction& i);
  bool finish_cluster();
  void deadlock();

  Launch& launch_;
  KernelData& kernel_;
  const Code& code_;
  std::mt19937_64 random_;
};

}  // namespace ard::emulator
