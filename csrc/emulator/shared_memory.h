// A block's shared memory, with a check for races: of two accesses to the same bytes, one of them a
// write, one must be ordered before the other by bar.sync, bar.warp.sync or a cluster barrier.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace ard::emulator {

struct Warp;
struct Block;
enum class Access : uint8_t { read, write, atomic };

// What a thread has passed that orders accesses.
struct ThreadClock {
  uint32_t epoch = 0;               // its number in Epochs, 0: to be made
  uint32_t syncs = 0;               // bar.warp.sync
  uint32_t arrives = 0, waits = 0;  // barrier.cluster
};

// A thread between two barriers, or several threads that have read the same.
struct Epoch {
  static constexpr uint16_t kSeveral = 0xffff;
  uint16_t block, warp;  // rank in the cluster, index in the block; or kSeveral
  uint32_t lanes;
  uint32_t barriers, syncs,
      arrives;  // counts of the block, the lanes (the highest), the threads (the highest)

  bool operator==(const Epoch& other) const;
};

class Epochs {
 public:
  void clear();
  uint32_t of(Warp& warp, unsigned lane);
  // Whether all accesses of the epoch come before what the thread does now.
  bool ordered(uint32_t epoch, const Warp& warp, unsigned lane) const;
  // The epoch of the readers of both.
  uint32_t merged(uint32_t one, uint32_t other);
  std::string describe(uint32_t epoch) const;

 private:
  struct Merge {
    uint32_t one = 0, other = 0, result = 0;
  };

  std::vector<Epoch> epochs_ = std::vector<Epoch>(1);
  std::array<Merge, 1024>
      merges_;  // the latest: threads of a warp that read the same make the same epochs again
};

class SharedMemory {
 public:
  // Makes all bytes unwritten; accesses are told apart by `granule` bytes.
  void reset(unsigned bytes, unsigned granule);
  unsigned size() const { return static_cast<unsigned>(data_.size()); }
  uint8_t* at(uint32_t offset) { return data_.data() + offset; }
  // Notes the access; "" or what is wrong with it.
  std::string check(Epochs& epochs, Warp& warp, unsigned lane, uint32_t offset, unsigned bytes,
                    Access access);

 private:
  struct Cell {
    uint32_t write = 0, read = 0;  // epochs of the last ones; 0: none
  };
  std::string check(Epochs& epochs, Warp& warp, unsigned lane, uint32_t mine, Cell& cell,
                    Access access);

  std::vector<uint8_t> data_;
  std::vector<Cell> cells_;
  unsigned shift_ = 2;  // log2 of the granule
};

}  // namespace ard::emulator
