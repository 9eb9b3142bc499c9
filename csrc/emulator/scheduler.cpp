#include "emulator/scheduler.h"

#include <algorithm>

namespace ard::emulator {
namespace {

constexpr u32 kNever = ~u32{0};

unsigned first_lane(u32 lanes) { return unsigned(__builtin_ctz(lanes)); }

template <class F>
void each_lane(u32 lanes, F f) {
  for (; lanes; lanes &= lanes - 1) f(first_lane(lanes));
}

}  // namespace

template <class F>
void Scheduler::each_warp(F f) {
  for (Block& block : launch_.blocks) {
    for (Warp& warp : block.warps) f(warp);
  }
}

void Scheduler::run_cluster(std::vector<Warp*>& warps) {
  while (true) {
    if (launch_.options.order == ThreadOrder::shuffled)
      std::shuffle(warps.begin(), warps.end(), random_);
    bool progress = false;
    const Warp* left = nullptr;
    for (Warp* warp : warps) {
      progress |= warp->running != 0;
      run_warp(*warp);
      if (warp->waiting()) left = warp;
    }
    if (!left) return;
    for (Block& block : launch_.blocks) progress |= finish_block(block);
    progress |= finish_cluster();
    if (progress) continue;
    const unsigned lane = first_lane(left->waiting());
    fault(*left, lane, code_.instructions[left->pc[lane]],
          "deadlock: all threads that are left wait");
  }
}

void Scheduler::run_warp(Warp& warp) {
  do {
    while (warp.running) {
      u32 stop = kNever;
      warp.active = pick(warp, &stop);
      run_lanes(warp, stop);
    }
  } while (finish_warp(warp));
}

// The lanes that run next, and the instruction where others join them.
u32 Scheduler::pick(Warp& warp, u32* stop) {
  const ThreadOrder order = launch_.options.order;
  if (order == ThreadOrder::reverse) return u32{1} << (31 - __builtin_clz(warp.running));
  u32 lanes = 0;
  if (order == ThreadOrder::shuffled) {
    unsigned chosen = random_() % kLanes;
    while (!(warp.running >> chosen & 1)) chosen = (chosen + 1) % kLanes;
    each_lane(warp.running,
              [&](unsigned lane) { lanes |= u32{warp.pc[lane] == warp.pc[chosen]} << lane; });
    return (lanes & u32(random_())) | u32{1} << chosen;
  }
  // Those that are furthest behind: so the lanes of a warp meet again behind a branch.
  u32 lowest = kNever;
  each_lane(warp.running, [&](unsigned lane) { lowest = std::min(lowest, warp.pc[lane]); });
  each_lane(warp.running, [&](unsigned lane) {
    if (warp.pc[lane] == lowest)
      lanes |= u32{1} << lane;
    else
      *stop = std::min(*stop, warp.pc[lane]);
  });
  return lanes;
}

// Runs the active lanes, which are at one place, until they part, wait, end or reach `stop`.
void Scheduler::run_lanes(Warp& warp, u32 stop) {
  const u32 lanes = warp.active;
  u32 pc = warp.pc[first_lane(lanes)];
  bool together = true;
  while (together && pc < stop) {
    const Instruction& i = code_.instructions[pc];
    ++kernel_.executed[pc];
    u32 passing = lanes;
    if (i.guard != kNoOperand) {
      const u64* guard = warp.slot(i.guard);
      passing = 0;
      warp.each(
          [&](unsigned lane) { passing |= u32((guard[lane] & 1) != i.guard_negated) << lane; });
    }
    if (!passing) {
      ++pc;
    } else if (i.control == Control::none) {
      warp.active = passing;
      i.run(warp, i);
      warp.active = lanes;
      ++pc;
    } else if (passing != lanes) {
      // The others go on without it, and these come back to it.
      const u32 taken = i.control == Control::branch ? i.target : pc;
      each_lane(lanes,
                [&](unsigned lane) { warp.pc[lane] = passing >> lane & 1 ? taken : pc + 1; });
      together = false;
    } else if (i.control == Control::branch) {
      pc = i.target;
    } else {
      together = control(warp, i, pc);
    }
  }
  if (together) each_lane(lanes, [&](unsigned lane) { warp.pc[lane] = pc; });
}

// Carries out what is no plain instruction; whether the same lanes run on at pc.
bool Scheduler::control(Warp& warp, const Instruction& i, u32& pc) {
  const u32 lanes = warp.active;
  const unsigned first = first_lane(lanes);
  switch (i.control) {
    case Control::table: {
      const std::vector<u32>& table = code_.tables[i.target];
      each_lane(lanes, [&](unsigned lane) {
        const u32 index = get<u32>(warp.slot(i.operands[0])[lane]);
        if (index >= table.size()) fault(warp, lane, i, "index beyond the branch targets");
        warp.pc[lane] = table[index];
      });
      return false;
    }
    case Control::exit:
      warp.running &= ~lanes;
      warp.block->live -= unsigned(__builtin_popcount(lanes));
      return false;
    case Control::warp: {
      bool all = true;
      each_lane(lanes,
                [&](unsigned lane) { all &= get<u32>(warp.slot(i.operands[5])[lane]) == lanes; });
      if (!all) {
        wait(warp, warp.in_warp, pc);
        return false;
      }
      i.run(warp, i);
      ++pc;
      return true;
    }
    case Control::block:
      wait(warp, warp.in_block, pc);
      return false;
    case Control::cluster_arrive:
      each_lane(lanes, [&](unsigned lane) {
        ThreadClock& clock = warp.clocks[lane];
        if (clock.arrives != clock.waits)
          fault(warp, lane, i, "barrier.cluster.arrive twice without a wait");
        // .relaxed orders nothing: here, only where there is nothing to be ordered.
        if (i.mode && (clock.epoch || clock.syncs || clock.arrives || warp.block->barriers))
          fault(warp, lane, i,
                "barrier.cluster.arrive.relaxed is not a thread's first barrier or access");
        ++clock.arrives;
        clock.epoch = 0;
      });
      ++pc;
      return true;
    case Control::cluster_wait:
      each_lane(lanes, [&](unsigned lane) {
        const ThreadClock& clock = warp.clocks[lane];
        if (clock.arrives == clock.waits)
          fault(warp, lane, i, "barrier.cluster.wait without an arrive");
      });
      wait(warp, warp.in_cluster, pc);
      return false;
    case Control::unsupported:
      fault(warp, first, i, "not supported: " + kernel_.places[pc].problem);
    default:
      fault(warp, first, i, "trap");
  }
}

void Scheduler::wait(Warp& warp, u32& waiting, u32 pc) {
  waiting |= warp.active;
  warp.running &= ~warp.active;
  each_lane(warp.active, [&](unsigned lane) { warp.pc[lane] = pc; });
}

// Completes what lanes of the warp wait for together; whether there was any.
bool Scheduler::finish_warp(Warp& warp) {
  bool any = false;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    if (!(warp.in_warp >> lane & 1)) continue;
    const u32 pc = warp.pc[lane];
    const Instruction& i = code_.instructions[pc];
    const auto mask_of = [&](unsigned other) {
      return get<u32>(warp.slot(code_.instructions[warp.pc[other]].operands[5])[other]);
    };
    const u32 mask = mask_of(lane);
    if (!(mask >> lane & 1)) fault(warp, lane, i, "the thread is not in its own mask");
    if (mask & ~warp.present) fault(warp, lane, i, "a lane of the mask does not exist");
    // Stricter than the PTX ISA, which waits for the others.
    if (mask & ~(warp.running | warp.waiting()))
      fault(warp, lane, i, "a lane of the mask has exited");
    bool ready = (mask & ~warp.in_warp) == 0;
    each_lane(mask & warp.in_warp, [&](unsigned other) {
      const bool same_mask = mask_of(other) == mask;
      ready &= same_mask && warp.pc[other] == pc;
      // The PTX ISA asks for the same instruction: nvcc writes the same place.
      if (!same_mask || warp.pc[other] == pc || code_.instructions[warp.pc[other]].run != i.run)
        return;
      fault(warp, lane, i,
            "thread " + std::to_string(warp.thread(other)) +
                " of the mask is at another place, line " +
                std::to_string(kernel_.places[warp.pc[other]].line));
    });
    if (!ready) continue;
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
    if (warp.in_block) one = &warp;
    waiting += unsigned(__builtin_popcount(warp.in_block));
  }
  if (!one) return false;
  const unsigned lane = first_lane(one->in_block);
  const u32 pc = one->pc[lane];
  const Instruction& i = code_.instructions[pc];
  if (i.operands[1] != kNoOperand && get<u32>(one->slot(i.operands[1])[lane]) != block.threads) {
    fault(*one, lane, i,
          "a barrier of another number of threads than the block has is not supported");
  }
  if (block.live != block.threads)
    fault(*one, lane, i, "barrier behind which threads of the block have exited");
  if (waiting != block.threads) return false;
  const u32 number = get<u32>(one->slot(i.operands[0])[lane]);
  for (Warp& warp : block.warps) {
    each_lane(warp.in_block, [&](unsigned other) {
      if (warp.pc[other] != pc) {
        fault(warp, other, code_.instructions[warp.pc[other]],
              "threads of a block wait at different places, here and at line " +
                  std::to_string(kernel_.places[pc].line));
      }
      if (get<u32>(warp.slot(i.operands[0])[other]) != number) {
        fault(warp, other, i, "threads of a block wait at different barriers");
      }
      ++warp.pc[other];
      warp.clocks[other].epoch = 0;
    });
    warp.running |= warp.in_block;
    warp.in_block = 0;
  }
  ++block.barriers;
  return true;
}

// Ends a cluster barrier at which all threads have arrived.
bool Scheduler::finish_cluster() {
  const Warp* one = nullptr;
  each_warp([&](const Warp& warp) { one = warp.in_cluster ? &warp : one; });
  if (!one) return false;
  const unsigned waits = first_lane(one->in_cluster);
  bool complete = true;
  each_warp([&](const Warp& warp) {
    each_lane(warp.present, [&](unsigned lane) {
      if (warp.clocks[lane].arrives >= one->clocks[waits].arrives) return;
      complete = false;
      if ((warp.running | warp.waiting()) >> lane & 1) return;
      fault(*one, waits, code_.instructions[one->pc[waits]],
            "cluster barrier at which threads of the cluster have exited without arriving");
    });
  });
  if (!complete) return false;
  each_warp([&](Warp& warp) {
    each_lane(warp.in_cluster, [&](unsigned lane) {
      ++warp.clocks[lane].waits;
      warp.clocks[lane].epoch = 0;
      ++warp.pc[lane];
    });
    warp.running |= warp.in_cluster;
    warp.in_cluster = 0;
  });
  return true;
}

}  // namespace ard::emulator
