// What the threads of a warp do together: shfl, vote, redux, match, bar.warp.sync. The scheduler
// calls these handlers with all lanes of the mask active.
#include <algorithm>

#include "emulator/decoder.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

enum class Shuffle : uint8_t { up, down, butterfly, index };

// Operands: result, predicate or none, a, b, c, mask.
void shuffle(Warp& warp, const Instruction& i) {
  const uint64_t *a = warp.slot(i.operands[2]), *b = warp.slot(i.operands[3]),
                 *c = warp.slot(i.operands[4]);
  uint32_t values[kLanes];
  warp.each([&](unsigned lane) { values[lane] = get<uint32_t>(a[lane]); });
  warp.each([&](unsigned lane) {
    const int amount = get<uint32_t>(b[lane]) & 31, self = static_cast<int>(lane);
    const int clamp = get<uint32_t>(c[lane]) & 31, segment = get<uint32_t>(c[lane]) >> 8 & 31;
    const int highest = (self & segment) | (clamp & ~segment), lowest = self & segment;
    int from = self;
    bool inside = false;
    switch (static_cast<Shuffle>(i.mode)) {
      case Shuffle::up:
        from = self - amount;
        inside = from >= highest;
        break;
      case Shuffle::down:
        from = self + amount;
        inside = from <= highest;
        break;
      case Shuffle::butterfly:
        from = self ^ amount;
        inside = from <= highest;
        break;
      case Shuffle::index:
        from = lowest | (amount & ~segment);
        inside = from <= highest;
        break;
    }
    if (!inside) from = self;
    if (!(warp.active >> from & 1)) {
      fault(warp, lane, i, "shfl from lane " + std::to_string(from) + ", which does not take part");
    }
    put<uint32_t>(warp.out(i.operands[0])[lane], values[from]);
    if (i.operands[1] != kNoOperand) put<bool>(warp.out(i.operands[1])[lane], inside);
  });
}

enum class Vote : uint8_t { all, any, uniform, ballot, negated = 4 };

// Operands: result, predicate, -, -, -, mask. Mode: Vote, + negated.
void vote(Warp& warp, const Instruction& i) {
  const uint64_t* predicate = warp.slot(i.operands[1]);
  const uint64_t negated = i.mode / static_cast<uint8_t>(Vote::negated);
  uint32_t ballot = 0;
  warp.each([&](unsigned lane) {
    ballot |= static_cast<uint32_t>((predicate[lane] & 1) != negated) << lane;
  });
  uint32_t result = ballot;
  switch (static_cast<Vote>(i.mode & 3)) {
    case Vote::all:
      result = ballot == warp.active;
      break;
    case Vote::any:
      result = ballot != 0;
      break;
    case Vote::uniform:
      result = ballot == 0 || ballot == warp.active;
      break;
    default:
      break;
  }
  warp.each([&](unsigned lane) { put<uint32_t>(warp.out(i.operands[0])[lane], result); });
}

enum class Reduction : uint8_t { add, minimum, maximum, conjunction, disjunction, difference };

// Operands as vote's.
template <class T>
void reduce(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.slot(i.operands[1]);
  T result = get<T>(a[__builtin_ctz(warp.active)]);
  const uint32_t all = warp.active;
  for (uint32_t left = all & (all - 1); left; left &= left - 1) {
    const T value = get<T>(a[__builtin_ctz(left)]);
    switch (static_cast<Reduction>(i.mode)) {
      case Reduction::add:
        result = static_cast<T>(static_cast<uint32_t>(result) + static_cast<uint32_t>(value));
        break;
      case Reduction::minimum:
        result = std::min(result, value);
        break;
      case Reduction::maximum:
        result = std::max(result, value);
        break;
      case Reduction::conjunction:
        result &= value;
        break;
      case Reduction::disjunction:
        result |= value;
        break;
      case Reduction::difference:
        result ^= value;
        break;
    }
  }
  warp.each([&](unsigned lane) { put<T>(warp.out(i.operands[0])[lane], result); });
}

// The lanes that have the same value. Operands as vote's.
template <class T>
void match_any(Warp& warp, const Instruction& i) {
  const uint64_t* a = warp.slot(i.operands[1]);
  uint32_t results[kLanes];
  warp.each([&](unsigned lane) {
    results[lane] = 0;
    warp.each([&](unsigned other) {
      results[lane] |= static_cast<uint32_t>(get<T>(a[lane]) == get<T>(a[other])) << other;
    });
  });
  warp.each([&](unsigned lane) { put<uint32_t>(warp.out(i.operands[0])[lane], results[lane]); });
}

// The threads' memory accesses before come before those behind.
void synchronize(Warp& warp, const Instruction&) {
  if (warp.seen.empty()) warp.seen.assign(kLanes * kLanes, 0);
  warp.each([&](unsigned lane) { warp.seen[lane * kLanes + lane] = ++warp.clocks[lane].syncs; });
  for (unsigned other = 0; other < kLanes;
       ++other) {  // each knows what any of them knew of the other
    uint32_t latest = 0;
    warp.each([&](unsigned lane) { latest = std::max(latest, warp.seen[lane * kLanes + other]); });
    warp.each([&](unsigned lane) { warp.seen[lane * kLanes + other] = latest; });
  }
  warp.each([&](unsigned lane) { warp.clocks[lane].epoch = 0; });
}

void decode_shuffle(Decoder& d) {
  const int how = d.take_one_of({"up", "down", "bfly", "idx"});
  if (how < 0 || !d.take("sync") || size_of(d.take_type()) != 4) return;
  d.expect(5);
  d.out.mode = static_cast<uint8_t>(how);
  const size_t bar = d.operands[0].find('|');
  d.out.operands[0] = d.destination(trimmed(d.operands[0].substr(0, bar)));
  if (bar != std::string_view::npos)
    d.out.operands[1] = d.destination(trimmed(d.operands[0].substr(bar + 1)));
  for (size_t at = 1; at < 5; ++at) d.out.operands[at + 1] = d.source(d.operands[at], Type::b32);
  d.out.run = shuffle;
}

// Of vote, redux and match: destination, source, mask.
void decode_common(Decoder& d, Type type) {
  d.expect(3);
  const bool negated = d.operands[1][0] == '!';
  if (negated) d.out.mode |= static_cast<uint8_t>(Vote::negated);
  d.out.operands[0] = d.destination(d.operands[0]);
  d.out.operands[1] = d.source(d.operands[1].substr(negated ? 1 : 0), type);
  d.out.operands[5] = d.source(d.operands[2], Type::b32);
}

}  // namespace

bool decode_warp(Decoder& d) {
  d.out.control = Control::warp;
  if (d.opcode == "shfl") {
    decode_shuffle(d);
    return true;
  }
  if (d.opcode == "vote") {
    const int how = d.take_one_of({"all", "any", "uni", "ballot"});
    const bool known = how >= 0 && d.take("sync");
    d.out.mode = static_cast<uint8_t>(how);
    decode_common(d, d.take_type());
    d.out.run = known ? vote : nullptr;
    return true;
  }
  if (d.opcode == "redux") {
    const int how = d.take_one_of({"add", "min", "max", "and", "or", "xor"});
    const bool known = how >= 0 && d.take("sync");
    d.out.mode = static_cast<uint8_t>(how);
    const Type type = d.take_type();
    decode_common(d, type);
    if (known && size_of(type) == 4 && !is_float(type))
      d.out.run = is_signed(type) ? reduce<int32_t> : reduce<uint32_t>;
    return true;
  }
  if (d.opcode == "match") {
    const bool known = d.take("any") && d.take("sync");
    const Type type = d.take_type();
    decode_common(d, type);
    if (known) d.out.run = size_of(type) == 8 ? match_any<uint64_t> : match_any<uint32_t>;
    return true;
  }
  if (d.opcode == "bar" && d.take("warp")) {
    d.take("sync");
    d.expect(1);
    d.out.operands[5] = d.source(d.operands[0], Type::b32);
    d.out.run = synchronize;
    return true;
  }
  d.out.control = Control::none;
  return false;
}

}  // namespace ard::emulator
