#include "emulator/scheduler.h"

#include <algorithm>

namespace ard::emulator {
namespace {

constexpr uint32_t kNever = ~uint32_t{0};

unsigned first_lane(uint32_t lanes) { return static_cast<unsigned>(__builtin_ctz(lanes)); }

template <class F>
void each_lane(uint32_t lanes, F f) {
  for (; lanes; lanes &= lanes - 1) f(first_lane(lanes));
}

}  // namespace

void Scheduler::run_cluster(std::vector<Warp*>& warps) {
  const ThreadOrder order = launch_.options.order;
  while (true) {
    if (order == ThreadOrder::shuffled) std::shuffle(warps.begin(), warps.end(), random_);
    bool progress = false, left = false;
    for (Warp* warp : warps) {
      progress |= warp->running != 0;
      run_warp(*warp);
      left |= warp->waiting() != 0;
    }
    if (!left) return;
    for (Block& block : launch_.blocks) progress |= finish_block(block);
    progress |= finish_cluster();
    if (!progress) deadlock();
  }
}

void Scheduler::run_warp(Warp& warp) {
  do {
    while (warp.running) {
      uint32_t stop = kNever;
      const uint32_t lanes = pick(warp, &stop);
      run_lanes(warp, lanes, stop);
    }
  } while (finish_warp(warp));
}

// The lanes that run next, and the instruction where others join them.
uint32_t Scheduler::pick(Warp& warp, uint32_t* stop) {
  const ThreadOrder order = launch_.options.order;
  if (order == ThreadOrder::reverse) return uint32_t{1} << (31 - __builtin_clz(warp.running));
  if (order == ThreadOrder::shuffled) {
    unsigned chosen = random_() % kLanes;
    while (!(warp.running >> chosen & 1)) chosen = (chosen + 1) % kLanes;
    uint32_t lanes = 0;
    each_lane(warp.running,
              [&](unsigned lane) { lanes |= uint32_t{warp.pc[lane] == warp.pc[chosen]} << lane; });
    return (lanes & static_cast<uint32_t>(random_())) | uint32_t{1} << chosen;
  }
  // Those that are furthest behind: so the lanes of a warp meet again behind a branch.
  uint32_t lanes = 0, lowest = kNever;
  each_lane(warp.running, [&](unsigned lane) {
    const uint32_t pc = warp.pc[lane];
    if (pc < lowest) {
      *stop = lowest;
      lowest = pc;
      lanes = 0;
    } else if (pc > lowest) {
      *stop = std::min(*stop, pc);
    }
    if (pc == lowest) lanes |= uint32_t{1} << lane;
  });
  return lanes;
}

void Scheduler::run_lanes(Warp& warp, uint32_t lanes, uint32_t stop) {
  const Instruction* instructions = code_.instructions.data();
  uint8_t* reached = kernel_.reached.data();
  const uint64_t threads = static_cast<uint64_t>(__builtin_popcount(lanes));
  uint32_t pc = warp.pc[first_lane(lanes)];
  uint64_t executed = 0;
  warp.active = lanes;
  while (pc < stop) {
    const Instruction& i = instructions[pc];
    reached[pc] = 1;
    ++executed;
    if (i.guard != kNoOperand) {
      const uint64_t* guard = warp.slot(i.guard);
      uint32_t passing = 0;
      warp.each([&](unsigned lane) {
        passing |= static_cast<uint32_t>((guard[lane] & 1) != i.guard_negated) << lane;
      });
      if (!passing) {
        ++pc;
        continue;
      }
      if (passing != lanes) {
        if (i.control == Control::none) {
          warp.active = passing;
          i.run(warp, i);
          warp.active = lanes;
          ++pc;
          continue;
        }
        // The others go on without it, and these come back to it.
        branch(warp, passing, i.control == Control::branch ? i.target : pc, pc + 1);
        kernel_.executed += executed * threads;
        return;
      }
    }
    if (i.control == Control::none) {
      i.run(warp, i);
      ++pc;
    } else if (i.control == Control::branch) {
      pc = i.target;
    } else if (!control(warp, i, pc)) {
      kernel_.executed += executed * threads;
      return;
    }
  }
  each_lane(lanes, [&](unsigned lane) { warp.pc[lane] = pc; });
  kernel_.executed += executed * threads;
}

// Carries out what is no plain instruction; whether the same lanes run on.
bool Scheduler::control(Warp& warp, const Instruction& i, uint32_t& pc) {
  const uint32_t lanes = warp.active;
  const unsigned first = first_lane(lanes);
  switch (i.control) {
    case Control::table: {
      const uint64_t* index = warp.slot(i.operands[0]);
      const std::vector<uint32_t>& table = code_.tables[i.target];
      each_lane(lanes, [&](unsigned lane) {
        if (get<uint32_t>(index[lane]) >= table.size())
          fault(warp, lane, i, "index beyond the branch targets");
        warp.pc[lane] = table[get<uint32_t>(index[lane])];
      });
      return false;
    }
    case Control::exit:
      warp.running &= ~lanes;
      warp.block->live -= static_cast<unsigned>(__builtin_popcount(lanes));
      return false;
    case Control::trap:
      fault(warp, first, i, "trap");
    case Control::unsupported:
      fault(warp, first, i, "not supported: " + kernel_.places[pc].problem);
    case Control::warp: {
      const uint64_t* masks = warp.slot(i.operands[5]);
      bool together = true;
      each_lane(lanes, [&](unsigned lane) { together &= get<uint32_t>(masks[lane]) == lanes; });
      if (together) {
        i.run(warp, i);
        ++pc;
        return true;
      }
      wait(warp, warp.in_warp, pc);
      return false;
    }
    case Control::block:
      wait(warp, warp.in_block, pc);
      return false;
    case Control::cluster_arrive:
      each_lane(lanes, [&](unsigned lane) {
        ThreadClock& clock = warp.clocks[lane];
        if (clock.arrives != clock.waits)
          fault(warp, lane, i, "barrier.cluster.arrive twice without a wait");
        ++clock.arrives;
        clock.epoch = 0;
      });
      ++pc;
      return true;
    default:
      each_lane(lanes, [&](unsigned lane) {
        const ThreadClock& clock = warp.clocks[lane];
        if (clock.arrives != clock.waits + 1)
          fault(warp, lane, i, "barrier.cluster.wait without an arrive");
      });
      wait(warp, warp.in_cluster, pc);
      return false;
  }
}

void Scheduler::branch(Warp& warp, uint32_t taken, uint32_t target, uint32_t next) {
  each_lane(warp.active, [&](unsigned lane) { warp.pc[lane] = taken >> lane & 1 ? target : next; });
}

void Scheduler::wait(Warp& warp, uint32_t& waiting, uint32_t pc) {
  waiting |= warp.active;
  warp.running &= ~warp.active;
  each_lane(warp.active, [&](unsigned lane) { warp.pc[lane] = pc; });
}

void Scheduler::check_mask(const Warp& warp, unsigned lane, const Instruction& i,
                           uint32_t mask) const {
  if (!(mask >> lane & 1)) fault(warp, lane, i, "the thread is not in its own mask");
  if (mask & ~warp.present) fault(warp, lane, i, "a lane of the mask does not exist");
  // Stricter than the PTX ISA, which waits for the others.
  if (mask & ~(warp.running | warp.waiting()))
    fault(warp, lane, i, "a lane of the mask has exited");
}

// Completes what lanes of the warp wait for together; whether there was any.
bool Scheduler::finish_warp(Warp& warp) {
  bool any = false;
  uint32_t seen = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!((warp.in_warp & ~seen) >> lane & 1)) continue;
    const uint32_t pc = warp.pc[lane];
    const Instruction& i = code_.instructions[pc];
    const uint64_t* masks = warp.slot(i.operands[5]);
    const uint32_t mask = get<uint32_t>(masks[lane]);
    check_mask(warp, lane, i, mask);
    bool ready = (mask & ~warp.in_warp) == 0;
    each_lane(mask & warp.in_warp, [&](unsigned other) {
      const Instruction& theirs = code_.instructions[warp.pc[other]];
      const bool same = get<uint32_t>(warp.slot(theirs.operands[5])[other]) == mask;
      // The PTX ISA asks for the same instruction: nvcc writes the same place.
      if (same && theirs.run == i.run && warp.pc[other] != pc) {
        fault(warp, lane, i,
              "threads " + std::to_string(warp.thread(lane)) + " and " +
                  std::to_string(warp.thread(other)) +
                  " of a mask are at different places, here and at line " +
                  std::to_string(kernel_.places[warp.pc[other]].line));
      }
      ready &= same && warp.pc[other] == pc;
    });
    if (!ready) continue;
    seen |= mask;
    any = true;
    warp.active = mask;
    i.run(warp, i);
    warp.in_warp &= ~mask;
    warp.running |= mask;
    each_lane(mask, [&](unsigned other) { ++warp.pc[other]; });
  }
  return any;
}

// Ends a barrier that all threads of the block have reached.
bool Scheduler::finish_block(Block& block) {
  const Warp* one = nullptr;
  unsigned waiting = 0;
  for (const Warp& warp : block.warps) {
    if (!one && warp.in_block) one = &warp;
    waiting += static_cast<unsigned>(__builtin_popcount(warp.in_block));
  }
  if (!one) return false;
  const unsigned lane = first_lane(one->in_block);
  const uint32_t pc = one->pc[lane];
  const Instruction& i = code_.instructions[pc];
  if (i.operands[2] != kNoOperand &&
      get<uint32_t>(one->slot(i.operands[2])[lane]) != block.threads) {
    fault(*one, lane, i,
          "a barrier of another number of threads than the block has is not supported");
  }
  if (block.live != block.threads)
    fault(*one, lane, i, "barrier behind which threads of the block have exited");
  if (waiting != block.threads) return false;
  const uint32_t number = get<uint32_t>(one->slot(i.operands[1])[lane]);
  for (const Warp& warp : block.warps) {
    each_lane(warp.in_block, [&](unsigned other) {
      const Instruction& theirs = code_.instructions[warp.pc[other]];
      if (warp.pc[other] != pc) {
        fault(warp, other, theirs,
              "threads of a block wait at different places, here and at line " +
                  std::to_string(kernel_.places[pc].line));
      }
      if (get<uint32_t>(warp.slot(theirs.operands[1])[other]) != number) {
        fault(warp, other, theirs, "threads of a block wait at different barriers");
      }
    });
  }
  if (i.operands[0] != kNoOperand) reduce(block, i);
  ++block.barriers;
  for (Warp& warp : block.warps) {
    each_lane(warp.in_block, [&](unsigned other) {
      ++warp.pc[other];
      warp.clocks[other].epoch = 0;
    });
    warp.running |= warp.in_block;
    warp.in_block = 0;
  }
  return true;
}

// bar.red: counts the threads whose predicate holds.
void Scheduler::reduce(Block& block, const Instruction& i) {
  uint32_t count = 0;
  for (const Warp& warp : block.warps) {
    const uint64_t* predicate = warp.slot(i.operands[3]);
    each_lane(warp.in_block,
              [&](unsigned lane) { count += (predicate[lane] & 1) != uint64_t{i.mode >= 4}; });
  }
  const unsigned operation = i.mode & 3;  // popc, and, or
  const uint32_t result = operation == 1   ? count
                          : operation == 2 ? count == block.threads
                                           : count != 0;
  for (const Warp& warp : block.warps) {
    each_lane(warp.in_block,
              [&](unsigned lane) { put<uint32_t>(warp.out(i.operands[0])[lane], result); });
  }
}

// Ends a cluster barrier at which all threads have arrived.
bool Scheduler::finish_cluster() {
  const Warp* one = nullptr;
  for (const Block& block : launch_.blocks) {
    for (const Warp& warp : block.warps) {
      if (!one && warp.in_cluster) one = &warp;
    }
  }
  if (!one) return false;
  const unsigned waits = first_lane(one->in_cluster);
  const uint32_t phase = one->clocks[waits].arrives;
  bool complete = true, exited = false;
  for (const Block& block : launch_.blocks) {
    for (const Warp& warp : block.warps) {
      each_lane(warp.present, [&](unsigned lane) {
        if (warp.clocks[lane].arrives >= phase) return;
        const bool gone = !((warp.running | warp.waiting()) >> lane & 1);
        exited |= gone;
        complete = false;
      });
    }
  }
  if (exited) {
    fault(*one, waits, code_.instructions[one->pc[waits]],
          "cluster barrier at which threads of the cluster have exited without arriving");
  }
  if (!complete) return false;
  for (Block& block : launch_.blocks) {
    for (Warp& warp : block.warps) {
      each_lane(warp.in_cluster, [&](unsigned lane) {
        ++warp.clocks[lane].waits;
        warp.clocks[lane].epoch = 0;
        ++warp.pc[lane];
      });
      warp.running |= warp.in_cluster;
      warp.in_cluster = 0;
    }
  }
  return true;
}

void Scheduler::deadlock() {
  for (const Block& block : launch_.blocks) {
    for (const Warp& warp : block.warps) {
      if (!warp.waiting()) continue;
      const unsigned lane = first_lane(warp.waiting());
      fault(warp, lane, code_.instructions[warp.pc[lane]],
            "deadlock: all threads that are left wait");
    }
  }
}

}  // namespace ard::emulator
