#include <algorithm>

#include "emulator/interpreter.h"

namespace ard::emulator {
namespace {

using Range = GlobalMemory::Range;

// Merges with those that overlap.
void insert(std::vector<Range>& ranges, Range range) {
  const auto before = [](const Range& a, uint64_t at) { return a.end <= at; };
  auto first = std::lower_bound(ranges.begin(), ranges.end(), range.begin, before);
  auto last = first;
  while (last != ranges.end() && last->begin < range.end) {
    range.begin = std::min(range.begin, last->begin);
    range.end = std::max(range.end, last->end);
    ++last;
  }
  ranges.insert(ranges.erase(first, last), range);
}

}  // namespace

void GlobalMemory::add(const void* begin, size_t bytes, bool writable) {
  if (!bytes) return;
  const uint64_t address = reinterpret_cast<uint64_t>(begin);
  insert(readable_, {address, address + bytes});
  if (writable) insert(writable_, {address, address + bytes});
}

void GlobalMemory::clear() {
  readable_.clear();
  writable_.clear();
}

const Range* GlobalMemory::find(uint64_t first, uint64_t last, bool write) const {
  const std::vector<Range>& ranges = write ? writable_ : readable_;
  const auto before = [](const Range& a, uint64_t at) { return a.end <= at; };
  const auto found = std::lower_bound(ranges.begin(), ranges.end(), first, before);
  return found != ranges.end() && found->contains(first, last) ? &*found : nullptr;
}

}  // namespace ard::emulator
