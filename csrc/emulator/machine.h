// The state of a launch while it runs, and how handlers reach the registers of a warp.
#pragma once

#include <array>
#include <cstring>
#include <utility>

#include "emulator/instruction.h"
#include "emulator/interpreter.h"

namespace ard::emulator {

constexpr unsigned kLanes = 32;
// Generic addresses of shared and local memory: far from those of the host.
constexpr u64 kSharedWindow = u64{1} << 60, kLocalWindow = u64{1} << 61, kWindowSize = u64{1} << 32;
// An address of shared memory: an offset from kSharedStart, so that 0 is nobody's; if mapa has made
// it, under the block's rank in the cluster + 1.
constexpr u32 kSharedStart = 1024;
constexpr unsigned kRankShift = 24;

enum class Access : u8 { read, write, atomic };

// What a thread has passed that orders accesses to shared memory.
struct ThreadClock {
  u32 epoch = 0;               // its number in Epochs, 0: to be made
  u32 syncs = 0;               // bar.warp.sync
  u32 arrives = 0, waits = 0;  // barrier.cluster
};

// A thread between two barriers, or several threads that have read the same.
struct Epoch {
  static constexpr u16 kSeveral = 0xffff;
  u16 block, warp;               // rank in the cluster, index in the block; or kSeveral
  u32 lanes;                     // 0 of several warps
  u32 barriers, syncs, arrives;  // of the block; the highest counts of the lanes; of the threads
};

class Epochs {
 public:
  void clear();
  u32 of(Warp& warp, unsigned lane);
  // Whether all accesses of the epoch come before what the thread does now.
  bool ordered(u32 epoch, const Warp& warp, unsigned lane) const;
  u32 merged(u32 one, u32 other);  // of the readers of both
  std::string describe(u32 epoch) const;

 private:
  std::vector<Epoch> epochs_ = std::vector<Epoch>(1);
  // The latest merges: threads of a warp that read the same make the same epochs again.
  std::array<std::array<u32, 3>, 1024> merges_;
};

// A block's shared memory, with a check for races: of two accesses to the same bytes, one of them a
// write, one must be ordered before the other by bar.sync, bar.warp.sync or a cluster barrier.
class SharedMemory {
 public:
  // Makes all bytes unwritten; accesses are told apart by `granule` bytes.
  void reset(unsigned bytes, unsigned granule);
  unsigned size() const { return unsigned(data_.size()); }
  u8* at(u32 offset) { return data_.data() + offset; }
  // Notes the access; "" or what is wrong with it.
  std::string check(Epochs& epochs, Warp& warp, unsigned lane, u32 offset, unsigned bytes,
                    Access access);

 private:
  struct Cell {
    u32 write = 0, read = 0;  // epochs of the last ones; 0: none
  };
  std::string check(Epochs& epochs, Warp& warp, unsigned lane, u32 mine, Cell& cell, Access access);

  std::vector<u8> data_;
  std::vector<Cell> cells_;
  unsigned shift_ = 2;  // log2 of the granule
};

struct Launch;
struct Block;

struct Warp {
  Launch* launch = nullptr;
  Block* block = nullptr;
  unsigned index = 0;  // in its block
  u64* registers = nullptr;
  const u64* constants = nullptr;
  u8 *local = nullptr, *local_written = nullptr;  // [32][local_bytes]

  u32 active = 0;  // lanes that execute the present instruction
  // All lanes, and what they do. Those that wait stand at the instruction that they wait at.
  u32 present = 0, running = 0, in_warp = 0, in_block = 0, in_cluster = 0;
  u32 pc[kLanes] = {};
  ThreadClock clocks[kLanes];
  std::vector<u32> seen;  // [32][32], of bar.warp.sync: the other lane's count when they last met

  u32 waiting() const { return in_warp | in_block | in_cluster; }
  unsigned thread(unsigned lane) const { return index * kLanes + lane; }
  const u64* slot(Operand operand) const {
    return operand >= 0 ? registers + size_t{kLanes} * operand
                        : constants + size_t{kLanes} * ~operand;
  }
  u64* out(Operand operand) const { return registers + size_t{kLanes} * operand; }

  template <class F>
  inline __attribute__((always_inline)) void each(F&& f) const {
    if (active == ~u32{0}) {
      for (unsigned lane = 0; lane < kLanes; ++lane) f(lane);
    } else {
      for (u32 left = active; left; left &= left - 1) f(unsigned(__builtin_ctz(left)));
    }
  }
};

struct Block {
  unsigned index = 0, rank = 0;  // in the grid, in the cluster
  unsigned threads = 0, live = 0;
  u32 barriers = 0;  // that its threads have passed
  std::vector<Warp> warps;
  SharedMemory shared;
};

struct Launch {
  const Kernel& kernel;
  const Code& code;
  const LaunchShape& shape;
  const Options& options;
  const GlobalMemory* memories[2];  // the caller's, the module's
  std::vector<u8> parameters;
  std::vector<Block> blocks;  // of the cluster that runs
  Epochs epochs;
  GlobalMemory::Range last[2];  // that was read, written
};

[[noreturn]] void fault(const Warp& warp, unsigned lane, const Instruction& i,
                        const std::string& what);

// A register has 64 bits. Signed values fill it: it may be wider than the instruction's type.
template <class T>
inline T get(const u64& slot) {
  T value;
  std::memcpy(&value, &slot, sizeof value);
  return value;
}
template <class T>
inline void put(u64& slot, T value) {
  if constexpr (std::is_integral_v<T>) {
    slot = u64(value);
  } else {
    slot = 0;
    std::memcpy(&slot, &value, sizeof value);
  }
}

template <class Signature>
struct Lanes;
template <class R, class... A>
struct Lanes<R(A...)> {
  template <class F, size_t... n>
  static inline __attribute__((always_inline)) void map(Warp& warp, const Instruction& i, F f,
                                                        std::index_sequence<n...>) {
    const u64* sources[] = {warp.slot(i.operands[1 + n])...};
    u64* to = warp.out(i.operands[0]);
    warp.each([&](unsigned lane) __attribute__((always_inline)) {
      put<R>(to[lane], f(get<A>(sources[n][lane])...));
    });
  }
  using Sources = std::index_sequence_for<A...>;
};
// operands[0] = f(operands[1], ..) of each active lane.
template <class Signature, class F>
inline __attribute__((always_inline)) void map(Warp& warp, const Instruction& i, F f) {
  Lanes<Signature>::map(warp, i, f, typename Lanes<Signature>::Sources());
}
// The handler of a function.
template <auto kFunction>
void apply(Warp& warp, const Instruction& i) {
  map<std::remove_pointer_t<decltype(kFunction)>>(warp, i, kFunction);
}

}  // namespace ard::emulator
