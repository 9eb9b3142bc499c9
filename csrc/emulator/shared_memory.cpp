#include "emulator/shared_memory.h"

#include <algorithm>

#include "emulator/warp.h"

namespace ard::emulator {
namespace {

// Marks the epoch of a cell's last write: it was atomic.
constexpr uint32_t kAtomic = 1u << 31;

}  // namespace

bool Epoch::operator==(const Epoch& other) const {
  return block == other.block && warp == other.warp && lanes == other.lanes &&
         barriers == other.barriers && syncs == other.syncs && arrives == other.arrives;
}

uint32_t Epochs::of(Warp& warp, unsigned lane) {
  ThreadClock& clock = warp.clocks[lane];
  if (!clock.epoch) {
    clock.epoch = static_cast<uint32_t>(epochs_.size());
    epochs_.push_back({static_cast<uint16_t>(warp.block->rank), static_cast<uint16_t>(warp.index),
                       1u << lane, warp.block->barriers, clock.syncs, clock.arrives});
  }
  return clock.epoch;
}

bool Epochs::ordered(uint32_t number, const Warp& warp, unsigned lane) const {
  const Epoch& epoch = epochs_[number];
  if (warp.clocks[lane].waits > epoch.arrives) return true;
  if (epoch.block != warp.block->rank) return false;
  if (warp.block->barriers > epoch.barriers) return true;
  if (epoch.warp != warp.index) return false;
  const uint32_t others = epoch.lanes & ~(1u << lane);
  if (!others) return true;
  if (warp.seen.empty()) return false;
  for (uint32_t left = others; left; left &= left - 1) {
    if (warp.seen[lane * kLanes + __builtin_ctz(left)] <= epoch.syncs) return false;
  }
  return true;
}

void Epochs::clear() {
  epochs_.resize(1);
  merges_.fill(Merge());
}

uint32_t Epochs::merged(uint32_t one, uint32_t other) {
  Merge& known = merges_[(one * 31 + other) % merges_.size()];
  if (known.one == one && known.other == other) return known.result;
  Epoch both = epochs_[one];
  const Epoch& more = epochs_[other];
  if (both.block != more.block) both.block = Epoch::kSeveral;
  if (both.block == Epoch::kSeveral || both.warp != more.warp) both.warp = Epoch::kSeveral;
  both.lanes |= more.lanes;
  both.barriers = std::max(both.barriers, more.barriers);
  both.syncs = std::max(both.syncs, more.syncs);
  both.arrives = std::max(both.arrives, more.arrives);
  if (both.warp ==
      Epoch::kSeveral) {  // lanes and their counts no longer matter: fewer different epochs
    both.lanes = 0;
    both.syncs = 0;
  }
  known = {one, other, one};
  if (!(both == epochs_[one])) {
    known.result = static_cast<uint32_t>(epochs_.size());
    epochs_.push_back(both);
  }
  return known.result;
}

std::string Epochs::describe(uint32_t number) const {
  const Epoch& epoch = epochs_[number];
  if (epoch.block == Epoch::kSeveral) return "several blocks";
  const std::string block = " of the cluster's block " + std::to_string(epoch.block);
  if (epoch.warp == Epoch::kSeveral) return "several warps" + block;
  return "thread " + std::to_string(epoch.warp * kLanes + __builtin_ctz(epoch.lanes)) + block;
}

void SharedMemory::reset(unsigned bytes, unsigned granule) {
  data_.assign(bytes, 0xff);
  shift_ = static_cast<unsigned>(__builtin_ctz(granule));
  cells_.assign((bytes >> shift_) + 1, Cell());
}

std::string SharedMemory::check(Epochs& epochs, Warp& warp, unsigned lane, uint32_t offset,
                                unsigned bytes, Access access) {
  const uint32_t mine = epochs.of(warp, lane);
  const uint32_t last = (offset + bytes - 1) >> shift_;
  for (uint32_t at = offset >> shift_; at <= last; ++at) {
    Cell& cell = cells_[at];
    if (cell.write == mine) {
      if (access == Access::read && cell.read == mine) continue;
      if (access == Access::write && !cell.read) continue;
    }
    const std::string problem = check(epochs, warp, lane, mine, cell, access);
    if (!problem.empty()) return problem + " at offset " + std::to_string(at << shift_);
  }
  return "";
}

std::string SharedMemory::check(Epochs& epochs, Warp& warp, unsigned lane, uint32_t mine,
                                Cell& cell, Access access) {
  const uint32_t write = cell.write & ~kAtomic;
  if (access != Access::write && !write) return "read of shared memory that nobody has written";
  const bool both_atomic = access == Access::atomic && cell.write & kAtomic;
  if (write && !both_atomic && !epochs.ordered(write, warp, lane)) {
    return std::string("race on shared memory: ") + (access == Access::read ? "read" : "write") +
           " after a write by " + epochs.describe(write);
  }
  if (access == Access::read) {
    const bool alone = !cell.read || epochs.ordered(cell.read, warp, lane);
    cell.read = alone ? mine : epochs.merged(cell.read, mine);
    return "";
  }
  if (cell.read && !epochs.ordered(cell.read, warp, lane)) {
    return "race on shared memory: write after a read by " + epochs.describe(cell.read);
  }
  cell.write = mine | (access == Access::atomic ? kAtomic : 0);
  cell.read = 0;
  return "";
}

}  // namespace ard::emulator
