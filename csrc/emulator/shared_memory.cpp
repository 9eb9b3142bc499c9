#include <algorithm>

#include "emulator/machine.h"

namespace ard::emulator {
namespace {

constexpr u32 kAtomic = 1u << 31;  // marks the epoch of a cell's last write

}  // namespace

void Epochs::clear() {
  epochs_.resize(1);
  merges_.fill({});
}

u32 Epochs::of(Warp& warp, unsigned lane) {
  ThreadClock& clock = warp.clocks[lane];
  if (!clock.epoch) {
    clock.epoch = u32(epochs_.size());
    const Block& block = *warp.block;
    epochs_.push_back(
        {u16(block.rank), u16(warp.index), 1u << lane, block.barriers, clock.syncs, clock.arrives});
  }
  return clock.epoch;
}

bool Epochs::ordered(u32 number, const Warp& warp, unsigned lane) const {
  const Epoch& epoch = epochs_[number];
  if (warp.clocks[lane].waits > epoch.arrives) return true;
  if (epoch.block != warp.block->rank) return false;
  if (warp.block->barriers > epoch.barriers) return true;
  if (epoch.warp != warp.index) return false;
  for (u32 others = epoch.lanes & ~(1u << lane); others; others &= others - 1) {
    if (warp.seen.empty()) return false;
    if (warp.seen[lane * kLanes + __builtin_ctz(others)] <= epoch.syncs) return false;
  }
  return true;
}

u32 Epochs::merged(u32 one, u32 other) {
  std::array<u32, 3>& known = merges_[(one * 31 + other) % merges_.size()];
  if (known[0] == one && known[1] == other) return known[2];
  const Epoch old = epochs_[one], more = epochs_[other];
  const u16 block = old.block == more.block ? old.block : Epoch::kSeveral;
  const bool one_warp = block == old.block && block != Epoch::kSeveral && old.warp == more.warp;
  Epoch both = {block,
                one_warp ? old.warp : Epoch::kSeveral,
                old.lanes | more.lanes,
                std::max(old.barriers, more.barriers),
                std::max(old.syncs, more.syncs),
                std::max(old.arrives, more.arrives)};
  if (both.warp == Epoch::kSeveral) both.lanes = both.syncs = 0;  // fewer different ones
  known = {one, other, one};
  if (std::memcmp(&both, &old, sizeof both) != 0) {
    known[2] = u32(epochs_.size());
    epochs_.push_back(both);
  }
  return known[2];
}

std::string Epochs::describe(u32 number) const {
  const Epoch& epoch = epochs_[number];
  if (epoch.warp == Epoch::kSeveral) return "several warps";
  return "thread " + std::to_string(epoch.warp * kLanes + __builtin_ctz(epoch.lanes)) +
         " of the cluster's block " + std::to_string(epoch.block);
}

void SharedMemory::reset(unsigned bytes, unsigned granule) {
  data_.assign(bytes, 0xff);
  shift_ = unsigned(__builtin_ctz(granule));
  cells_.assign((bytes >> shift_) + 1, Cell());
}

std::string SharedMemory::check(Epochs& epochs, Warp& warp, unsigned lane, u32 offset,
                                unsigned bytes, Access access) {
  const u32 mine = epochs.of(warp, lane);
  for (u32 at = offset >> shift_; at <= (offset + bytes - 1) >> shift_; ++at) {
    Cell& cell = cells_[at];
    if (cell.write == mine && access == Access::write && !cell.read) continue;
    if (cell.write && cell.read == mine && access == Access::read) continue;
    const std::string problem = check(epochs, warp, lane, mine, cell, access);
    if (!problem.empty()) return problem + " at offset " + std::to_string(at << shift_);
  }
  return "";
}

std::string SharedMemory::check(Epochs& epochs, Warp& warp, unsigned lane, u32 mine, Cell& cell,
                                Access access) {
  const u32 write = cell.write & ~kAtomic;
  if (access != Access::write && !write) return "read of shared memory that nobody has written";
  const bool both_atomic = access == Access::atomic && cell.write & kAtomic;
  const auto race = [&] {
    return std::string("race on shared memory: ") + (access == Access::read ? "read" : "write");
  };
  if (write && !both_atomic && !epochs.ordered(write, warp, lane)) {
    return race() + " after a write by " + epochs.describe(write);
  }
  const bool after_reads = !cell.read || epochs.ordered(cell.read, warp, lane);
  if (access == Access::read) {
    cell.read = after_reads ? mine : epochs.merged(cell.read, mine);
    return "";
  }
  if (!after_reads) return race() + " after a read by " + epochs.describe(cell.read);
  cell = {mine | (access == Access::atomic ? kAtomic : 0), 0};
  return "";
}

// Ranges that overlap are merged.
static void insert(std::vector<GlobalMemory::Range>& ranges, GlobalMemory::Range range) {
  auto first = ranges.begin();
  while (first != ranges.end() && first->end <= range.begin) ++first;
  auto last = first;
  for (; last != ranges.end() && last->begin < range.end; ++last) {
    range = {std::min(range.begin, last->begin), std::max(range.end, last->end)};
  }
  ranges.insert(ranges.erase(first, last), range);
}

void GlobalMemory::add(const void* begin, size_t bytes, bool writable) {
  const u64 address = reinterpret_cast<u64>(begin);
  if (bytes) insert(readable_, {address, address + bytes});
  if (bytes && writable) insert(writable_, {address, address + bytes});
}

void GlobalMemory::clear() {
  readable_.clear();
  writable_.clear();
}

const GlobalMemory::Range* GlobalMemory::find(u64 first, u64 last, bool write) const {
  const std::vector<Range>& ranges = write ? writable_ : readable_;
  const auto before = [](const Range& range, u64 at) { return range.end <= at; };
  const auto found = std::lower_bound(ranges.begin(), ranges.end(), first, before);
  return found != ranges.end() && found->contains(first, last) ? &*found : nullptr;
}

}  // namespace ard::emulator
