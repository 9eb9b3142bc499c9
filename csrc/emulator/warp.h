// The state of a launch while it runs: launch, block, warp; and how a handler reaches the lanes'
// registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "emulator/instruction.h"
#include "emulator/interpreter.h"
#include "emulator/shared_memory.h"

namespace ard::emulator {

constexpr unsigned kLanes = 32;
// Generic addresses of shared and local memory: far from those of the host.
constexpr uint64_t kSharedWindow = uint64_t{1} << 60;
constexpr uint64_t kLocalWindow = uint64_t{1} << 61;
// An address of shared memory: offset from kSharedStart, so that 0 is nobody's, and above it, where
// mapa made the address, the block's rank in the cluster + 1.
constexpr uint32_t kSharedStart = 1024;
constexpr unsigned kRankShift = 24;

template <class T>
inline T get(const uint64_t& slot) {
  T value;
  std::memcpy(&value, &slot, sizeof value);
  return value;
}
// Signed values are extended: a register may be wider than the instruction's type.
template <class T>
inline void put(uint64_t& slot, T value) {
  if constexpr (std::is_integral_v<T>) {
    slot = static_cast<uint64_t>(value);
  } else {
    slot = 0;
    std::memcpy(&slot, &value, sizeof value);
  }
}

struct Launch;
struct Block;

struct Warp {
  Launch* launch = nullptr;
  Block* block = nullptr;
  unsigned index = 0;  // in its block
  uint64_t* registers = nullptr;
  const uint64_t* constants = nullptr;
  uint32_t active = 0;  // lanes that execute the present instruction

  // Lanes by what they do. Those that wait stand at the instruction that they wait at.
  uint32_t running = 0, in_warp = 0, in_block = 0, in_cluster = 0;
  uint32_t pc[kLanes] = {};
  ThreadClock clocks[kLanes];
  std::vector<uint32_t>
      seen;  // [32][32], of bar.warp.sync: the other lane's count when they last met
  uint8_t* local = nullptr;  // [32][local_bytes]
  uint8_t* local_written = nullptr;

  uint32_t present = 0;  // lanes that there are
  uint32_t waiting() const { return in_warp | in_block | in_cluster; }
  unsigned thread(unsigned lane) const { return index * kLanes + lane; }

  const uint64_t* slot(Operand operand) const {
    return operand >= 0 ? registers + size_t{kLanes} * operand
                        : constants + size_t{kLanes} * ~operand;
  }
  uint64_t* out(Operand operand) const { return registers + size_t{kLanes} * operand; }

  template <class F>
  inline __attribute__((always_inline)) void each(F&& f) const {
    if (active == ~uint32_t{0}) {
      for (unsigned lane = 0; lane < kLanes; ++lane) f(lane);
    } else {
      for (uint32_t left = active; left; left &= left - 1)
        f(static_cast<unsigned>(__builtin_ctz(left)));
    }
  }
};

struct Block {
  unsigned index = 0, rank = 0;  // in the grid, in the cluster
  unsigned threads = 0, live = 0;
  uint32_t barriers = 0;  // that its threads have passed
  std::vector<Warp> warps;
  SharedMemory shared;
};

struct Launch {
  const Kernel& kernel;
  const Code& code;
  const LaunchShape& shape;
  const GlobalMemory& memory;
  const GlobalMemory& module_memory;
  const Options& options;
  std::vector<uint8_t> parameters;
  std::vector<Block> blocks;  // of the cluster that runs
  Epochs epochs;
  GlobalMemory::Range last_read, last_write;  // ranges that were hit last
};

// What an access is checked for: memory.cpp.
[[noreturn]] void fault(const Warp& warp, unsigned lane, const Instruction& instruction,
                        const std::string& what);

// A handler's operands: 0 is the destination.
template <class R, class A, class F>
inline __attribute__((always_inline)) void unary(Warp& warp, const Instruction& i, F f) {
  uint64_t* to = warp.out(i.operands[0]);
  const uint64_t* a = warp.slot(i.operands[1]);
  warp.each([&](unsigned lane)
                __attribute__((always_inline)) { put<R>(to[lane], f(get<A>(a[lane]))); });
}
template <class R, class A, class B, class F>
inline __attribute__((always_inline)) void binary(Warp& warp, const Instruction& i, F f) {
  uint64_t* to = warp.out(i.operands[0]);
  const uint64_t *a = warp.slot(i.operands[1]), *b = warp.slot(i.operands[2]);
  warp.each([&](unsigned lane) __attribute__((always_inline)) {
    put<R>(to[lane], f(get<A>(a[lane]), get<B>(b[lane])));
  });
}
template <class R, class A, class B, class C, class F>
inline __attribute__((always_inline)) void ternary(Warp& warp, const Instruction& i, F f) {
  uint64_t* to = warp.out(i.operands[0]);
  const uint64_t *a = warp.slot(i.operands[1]), *b = warp.slot(i.operands[2]),
                 *c = warp.slot(i.operands[3]);
  warp.each([&](unsigned lane) __attribute__((always_inline)) {
    put<R>(to[lane], f(get<A>(a[lane]), get<B>(b[lane]), get<C>(c[lane])));
  });
}

}  // namespace ard::emulator
