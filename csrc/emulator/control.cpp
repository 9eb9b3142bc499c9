// Branches, barriers, and what the threads of a warp do together: the scheduler calls those
// handlers with all lanes of the mask active.
#include <algorithm>

#include "emulator/decoder.h"
#include "emulator/machine.h"

namespace ard::emulator {
namespace {

enum Shuffle : u8 { kUp, kDown, kButterfly, kIndex };

// Operands: result, predicate or none, a, b, c, mask.
void shuffle(Warp& warp, const Instruction& i) {
  const u64 *a = warp.slot(i.operands[2]), *b = warp.slot(i.operands[3]),
            *c = warp.slot(i.operands[4]);
  u32 values[kLanes];
  warp.each([&](unsigned lane) { values[lane] = get<u32>(a[lane]); });
  warp.each([&](unsigned lane) {
    const int self = int(lane), amount = b[lane] & 31, clamp = c[lane] & 31,
              segment = c[lane] >> 8 & 31;
    const int highest = (self & segment) | (clamp & ~segment);
    const int froms[] = {self - amount, self + amount, self ^ amount,
                         (self & segment) | (amount & ~segment)};
    const bool inside = i.mode == kUp ? froms[kUp] >= highest : froms[i.mode] <= highest;
    const int from = inside ? froms[i.mode] : self;
    if (!(warp.active >> from & 1)) {
      fault(warp, lane, i, "shfl from lane " + std::to_string(from) + ", which does not take part");
    }
    put<u32>(warp.out(i.operands[0])[lane], values[from]);
    if (i.operands[1] != kNoOperand) warp.out(i.operands[1])[lane] = inside;
  });
}

enum Vote : u8 { kAll, kAny, kUniform, kBallot };
constexpr u8 kNegated = 4;

// Operands: result, predicate, and at 5 the mask.
void vote(Warp& warp, const Instruction& i) {
  const u64* predicate = warp.slot(i.operands[1]);
  u32 ballot = 0;
  warp.each(
      [&](unsigned lane) { ballot |= u32((predicate[lane] & 1) != i.mode / kNegated) << lane; });
  const bool all = ballot == warp.active;
  const u32 results[] = {all, ballot != 0, all || !ballot, ballot};
  warp.each([&](unsigned lane) { warp.out(i.operands[0])[lane] = results[i.mode % kNegated]; });
}

// mode: add, min, max, and, or, xor

template <class T>
void reduce(Warp& warp, const Instruction& i) {
  const u64* a = warp.slot(i.operands[1]);
  const u32 first = u32(__builtin_ctz(warp.active));
  T result = get<T>(a[first]);
  warp.each([&](unsigned lane) {
    const T x = get<T>(a[lane]);
    const T results[] = {T(u32(result) + u32(x)),
                         std::min(result, x),
                         std::max(result, x),
                         result & x,
                         result | x,
                         result ^ x};
    if (lane != first) result = results[i.mode];
  });
  warp.each([&](unsigned lane) { put<T>(warp.out(i.operands[0])[lane], result); });
}

// bar.warp.sync: the threads' memory accesses before come before those behind.
void synchronize(Warp& warp, const Instruction&) {
  if (warp.seen.empty()) warp.seen.assign(kLanes * kLanes, 0);
  warp.each([&](unsigned lane) {
    warp.seen[lane * kLanes + lane] = ++warp.clocks[lane].syncs;
    warp.clocks[lane].epoch = 0;
  });
  for (unsigned other = 0; other < kLanes;
       ++other) {  // each knows what any of them knew of the other
    u32 latest = 0;
    warp.each([&](unsigned lane) { latest = std::max(latest, warp.seen[lane * kLanes + other]); });
    warp.each([&](unsigned lane) { warp.seen[lane * kLanes + other] = latest; });
  }
}

void decode_warp(Decoder& d) {
  d.out.control = Control::warp;
  if (d.opcode == "bar") {
    d.drop({"warp", "sync"});
    d.expect(1);
    d.out.run = synchronize;
  } else if (d.opcode == "shfl") {
    d.out.mode = u8(d.take_one_of({"up", "down", "bfly", "idx"}));
    d.expect(5);
    d.destinations(d.operands[0]);
    for (size_t at = 1; at < 4; ++at) d.out.operands[at + 1] = d.source(d.operands[at], Type::b32);
    if (d.take("sync") && size_of(d.take_type()) == 4) d.out.run = shuffle;
  } else {
    const bool votes = d.opcode == "vote";
    const int how = votes ? d.take_one_of({"all", "any", "uni", "ballot"})
                          : d.take_one_of({"add", "min", "max", "and", "or", "xor"});
    const Type type = d.take_type();
    d.out.mode = u8(how);
    d.expect(3);
    d.out.operands[0] = d.destination(d.operands[0]);
    if (d.negatable(d.operands[1], &d.out.operands[1])) d.out.mode |= kNegated;
    if (how < 0 || !d.take("sync")) return;
    if (votes)
      d.out.run = vote;
    else if (size_of(type) == 4)
      d.out.run = type == Type::s32 ? reduce<s32> : reduce<u32>;
  }
  d.out.operands[5] = d.source(d.operands.back(), Type::b32);
}

// bar.sync number{, threads}. Operands: number, threads or none.
void decode_barrier(Decoder& d) {
  d.out.control = Control::block;
  d.drop({"cta", "aligned"});
  const bool counted = d.operands.size() == 2;
  d.expect(counted ? 2 : 1);
  if (!d.take("sync")) throw Fault("unknown barrier");
  d.out.operands[0] = d.source(d.operands[0], Type::u32);
  if (counted) d.out.operands[1] = d.source(d.operands[1], Type::u32);
}

}  // namespace

bool decode_control(Decoder& d) {
  const bool barrier = d.opcode == "bar" || d.opcode == "barrier";
  if (d.opcode == "bra" || d.opcode == "brx") {
    const bool one = d.opcode == "bra";
    d.drop({"uni", "idx"});
    d.expect(one ? 1 : 2);
    d.out.control = one ? Control::branch : Control::table;
    d.label = d.operands.back();
    if (!one) d.out.operands[0] = d.source(d.operands[0], Type::u32);
  } else if (d.opcode == "ret" || d.opcode == "exit") {
    d.take("uni");
    d.out.control = Control::exit;
  } else if (d.opcode == "trap") {
    d.out.control = Control::trap;
  } else if (barrier && d.take("cluster")) {
    d.out.control = d.take("arrive") ? Control::cluster_arrive : Control::cluster_wait;
    if (d.out.control == Control::cluster_arrive) d.out.mode = d.take("relaxed");
    d.drop({"wait", "aligned", d.out.control == Control::cluster_arrive ? "release" : "acquire"});
  } else if (d.opcode == "shfl" || d.opcode == "vote" || d.opcode == "redux" ||
             (barrier && d.has("warp"))) {
    decode_warp(d);
  } else if (barrier) {
    decode_barrier(d);
  } else {
    return false;
  }
  return true;
}

}  // namespace ard::emulator
