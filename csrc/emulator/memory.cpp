// Loads, stores, atomics and addresses.
#include <algorithm>

#include "emulator/decoder.h"
#include "emulator/machine.h"

namespace ard::emulator {
namespace {

u8* shared_at(Warp& warp, unsigned lane, const Instruction& i, u32 address, unsigned bytes,
              Access access) {
  Launch& launch = *warp.launch;
  const u32 rank = address >> kRankShift, offset = address & ((1u << kRankShift) - 1);
  if (rank > launch.shape.cluster)
    fault(warp, lane, i, "shared address of no block of the cluster");
  Block& block = rank ? launch.blocks[rank - 1] : *warp.block;
  if (offset < kSharedStart || offset + bytes > kSharedStart + block.shared.size()) {
    fault(warp, lane, i,
          "shared memory: offset " + std::to_string(s64(offset) - kSharedStart) + " + " +
              std::to_string(bytes) + " of " + std::to_string(block.shared.size()) + " bytes");
  }
  if (&block != warp.block) {
    if (!warp.clocks[lane].waits)
      fault(warp, lane, i, "another block's shared memory before any cluster barrier");
    if (block.live != block.threads)
      fault(warp, lane, i, "shared memory of a block of which threads have exited");
  }
  const std::string problem =
      block.shared.check(launch.epochs, warp, lane, offset - kSharedStart, bytes, access);
  if (!problem.empty()) fault(warp, lane, i, problem);
  return block.shared.at(offset - kSharedStart);
}

u8* local_at(Warp& warp, unsigned lane, const Instruction& i, u64 address, unsigned bytes,
             Access access) {
  const unsigned size = warp.launch->code.local_bytes;
  if (address + bytes > size) fault(warp, lane, i, "local memory out of bounds");
  const size_t at = size_t{lane} * size + address;
  u8* written = warp.local_written + at;
  if (access == Access::write) std::fill_n(written, bytes, u8{1});
  if (std::count(written, written + bytes, u8{0}))
    fault(warp, lane, i, "read of local memory that has not been written");
  return warp.local + at;
}

u8* parameter_at(Warp& warp, unsigned lane, const Instruction& i, u64 address, unsigned bytes,
                 Access access) {
  std::vector<u8>& parameters = warp.launch->parameters;
  if (access != Access::read) fault(warp, lane, i, "write to a parameter");
  if (address + bytes > parameters.size()) fault(warp, lane, i, "parameter out of bounds");
  return parameters.data() + address;
}

u8* global_at(Warp& warp, unsigned lane, const Instruction& i, u64 address, unsigned bytes,
              Access access) {
  const bool write = access != Access::read;
  GlobalMemory::Range& last = warp.launch->last[write];
  if (last.contains(address, address + bytes)) return reinterpret_cast<u8*>(address);
  bool readable = false;
  for (const GlobalMemory* memory : warp.launch->memories) {
    if (const GlobalMemory::Range* found = memory->find(address, address + bytes, write)) {
      last = *found;
      return reinterpret_cast<u8*>(address);
    }
    readable |= memory->find(address, address + bytes, false) != nullptr;
  }
  if (readable) fault(warp, lane, i, "write to global memory that is read-only");
  fault(warp, lane, i,
        std::string(write ? "write to" : "read of") + " global memory out of bounds");
}

template <Space kSpace>
inline u8* locate(Warp& warp, unsigned lane, const Instruction& i, u64 base, unsigned bytes,
                  Access access) {
  const u64 whole = base + u64(s64(i.offset)),
            address = kSpace == Space::shared ? u32(whole) : whole;
  if (address & (bytes - 1)) {
    fault(warp, lane, i,
          "misaligned address " + std::to_string(address) + " for " + std::to_string(bytes) +
              " bytes");
  }
  if (kSpace == Space::shared) return shared_at(warp, lane, i, u32(address), bytes, access);
  if (kSpace == Space::local) return local_at(warp, lane, i, address, bytes, access);
  if (kSpace == Space::param) return parameter_at(warp, lane, i, address, bytes, access);
  if (kSpace == Space::global) return global_at(warp, lane, i, address, bytes, access);
  const u64 shared = address - kSharedWindow, local = address - kLocalWindow;
  if (shared < kWindowSize) return shared_at(warp, lane, i, u32(shared), bytes, access);
  if (local < kWindowSize) return local_at(warp, lane, i, local, bytes, access);
  return global_at(warp, lane, i, address, bytes, access);
}

// Operands: up to four destinations, the address at 4.
template <class T, Space kSpace>
void load(Warp& warp, const Instruction& i) {
  const u64* addresses = warp.slot(i.operands[4]);
  const unsigned bytes = unsigned(sizeof(T)) * i.vector;
  warp.each([&](unsigned lane) {
    const u8* from = locate<kSpace>(warp, lane, i, addresses[lane], bytes, Access::read);
    T values[4];
    std::memcpy(values, from, bytes);  // a destination may be the address
    for (unsigned part = 0; part < i.vector; ++part)
      put<T>(warp.out(i.operands[part])[lane], values[part]);
  });
}

// Operands: the address, up to four sources.
template <class T, Space kSpace>
void store(Warp& warp, const Instruction& i) {
  const u64* addresses = warp.slot(i.operands[0]);
  const unsigned bytes = unsigned(sizeof(T)) * i.vector;
  warp.each([&](unsigned lane) {
    u8* to = locate<kSpace>(warp, lane, i, addresses[lane], bytes, Access::write);
    for (unsigned part = 0; part < i.vector; ++part) {
      std::memcpy(to + part * sizeof(T), &warp.slot(i.operands[1 + part])[lane], sizeof(T));
    }
  });
}

enum Update : u8 { kAdd, kMinimum, kMaximum, kAnd, kOr, kXor, kExchange, kCompare };

template <class T>
T updated(u8 update, T old, T b, T c) {
  if constexpr (std::is_integral_v<T>) {
    const T results[] = {T(u64(old) + u64(b)),
                         std::min(old, b),
                         std::max(old, b),
                         T(old & b),
                         T(old | b),
                         T(old ^ b),
                         b,
                         old == b ? c : old};
    return results[update];
  }
  return old + b;
}

// One lane after the other, and so atomic. Operands: the old value or none, address, b, c.
template <class T, Space kSpace>
void update(Warp& warp, const Instruction& i) {
  const u64 *addresses = warp.slot(i.operands[1]), *b = warp.slot(i.operands[2]),
            *c = warp.slot(i.operands[3]);
  warp.each([&](unsigned lane) {
    u8* at = locate<kSpace>(warp, lane, i, addresses[lane], sizeof(T), Access::atomic);
    T old;
    std::memcpy(&old, at, sizeof old);
    const T result = updated<T>(i.mode, old, get<T>(b[lane]), get<T>(c[lane]));
    std::memcpy(at, &result, sizeof result);
    if (i.operands[0] != kNoOperand) put<T>(warp.out(i.operands[0])[lane], old);
  });
}

// Of an address in another space 0, which is nobody's.
u64 to_shared(u64 a) { return a - kSharedWindow < kWindowSize ? a - kSharedWindow : 0; }
u64 from_shared(u64 a) { return a + kSharedWindow; }
u64 to_local(u64 a) { return a - kLocalWindow; }
u64 from_local(u64 a) { return a + kLocalWindow; }
u64 same(u64 a) { return a; }

// The address of the same place in another block of the cluster: in shared memory, or generic.
template <bool kGeneric>
void map_to_block(Warp& warp, const Instruction& i) {
  const u64 *addresses = warp.slot(i.operands[1]), *ranks = warp.slot(i.operands[2]);
  warp.each([&](unsigned lane) {
    const u32 rank = get<u32>(ranks[lane]);
    if (rank >= warp.launch->shape.cluster) {
      fault(warp, lane, i, "mapa: the cluster has no block " + std::to_string(rank));
    }
    const u32 offset = u32(addresses[lane]) & ((1u << kRankShift) - 1);
    warp.out(i.operands[0])[lane] =
        (offset | (rank + 1) << kRankShift) | (kGeneric ? kSharedWindow : 0);
  });
}

void nothing(Warp&, const Instruction&) {}

#define BY_SPACE(handler, T)                            \
  (space == Space::global   ? handler<T, Space::global> \
   : space == Space::shared ? handler<T, Space::shared> \
   : space == Space::local  ? handler<T, Space::local>  \
   : space == Space::param  ? handler<T, Space::param>  \
                            : Handler(handler<T, Space::generic>))

Space take_space(Decoder& d) {
  if (d.take_one_of({"global", "const"}) >= 0) return Space::global;
  if (d.take_one_of({"shared", "shared::cta", "shared::cluster"}) >= 0) return Space::shared;
  if (d.take("local")) return Space::local;
  return d.take("param") ? Space::param : Space::generic;
}

// Cache hints; orders and scopes, which mean nothing where threads run one after another.
void drop_hints(Decoder& d) {
  d.drop({"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_normal", "L1::evict_unchanged",
          "L1::evict_first", "L1::evict_last", "L1::no_allocate", "L2::evict_first",
          "L2::evict_last", "L2::64B", "L2::128B", "L2::256B"});
  d.drop({"volatile", "weak", "relaxed", "acquire", "release", "acq_rel", "sc", "cta", "cluster",
          "gpu", "sys"});
}

void decode_load_or_store(Decoder& d, bool loads) {
  const Space space = take_space(d);
  drop_hints(d);
  d.out.vector = d.take("v2") ? 2 : d.take("v4") ? 4 : 1;
  const Type type = d.take_type();
  d.expect(2);
  const auto parts = elements(d.operands[loads ? 0 : 1]);
  if (parts.size() != d.out.vector) throw Fault("another number of elements than the vector has");
  for (size_t part = 0; part < parts.size(); ++part) {
    if (loads)
      d.out.operands[part] = d.destination(parts[part]);
    else
      d.out.operands[1 + part] = d.source(parts[part], type);
  }
  d.address(d.operands[loads ? 1 : 0], loads ? 4 : 0, space);
  d.note_access(space, size_of(type) * d.out.vector);
  d.out.run = by_size(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (!loads) return BY_SPACE(store, T);
    const bool extends = type == Type::s8 || type == Type::s16 || type == Type::s32;
    return extends ? BY_SPACE(load, std::make_signed_t<T>) : BY_SPACE(load, T);
  });
}

void decode_atomic(Decoder& d, bool reduces) {
  const Space space = take_space(d);
  drop_hints(d);
  const int what = d.take_one_of({"add", "min", "max", "and", "or", "xor", "exch", "cas"});
  const Type type = d.take_type();
  const size_t at = reduces ? 0 : 1;
  d.expect(at + (what == kCompare ? 3 : 2));
  if (!reduces) d.out.operands[0] = d.destination(d.operands[0]);
  d.address(d.operands[at], 1, space);
  d.out.operands[2] = d.source(d.operands[at + 1], type);
  d.out.operands[3] = d.source(d.operands.back(), type);
  d.note_access(space, size_of(type));
  d.out.mode = u8(what);
  if (type == Type::f32 && what == kAdd) d.out.run = BY_SPACE(update, float);
  if (type == Type::f64 && what == kAdd) d.out.run = BY_SPACE(update, double);
  if (is_float(type) || what < 0 || size_of(type) < 4) return;
  d.out.run =
      by_integer(type, [&](auto tag) { return BY_SPACE(update, typename decltype(tag)::type); });
}

}  // namespace

bool decode_memory(Decoder& d) {
  if (d.opcode == "ld" || d.opcode == "st") {
    decode_load_or_store(d, d.opcode == "ld");
  } else if (d.opcode == "atom" || d.opcode == "red") {
    decode_atomic(d, d.opcode == "red");
  } else if (d.opcode == "cvta") {
    const bool to = d.take("to");
    const Space space = take_space(d);
    const Type type = d.take_type();
    d.simple(2, type);
    if (size_of(type) != 8 || space == Space::generic) return true;
    d.out.run = apply<same>;
    if (space == Space::shared) d.out.run = to ? apply<to_shared> : apply<from_shared>;
    if (space == Space::local) d.out.run = to ? apply<to_local> : apply<from_local>;
  } else if (d.opcode == "mapa") {
    d.out.run = take_space(d) == Space::shared ? map_to_block<false> : map_to_block<true>;
    d.simple(3, d.take_type());
  } else if (d.opcode == "prefetch" || d.opcode == "membar" || d.opcode == "fence") {
    take_space(d);
    drop_hints(d);
    d.drop({"gl", "L1", "L2"});
    d.out.run = nothing;
  } else {
    return false;
  }
  return true;
}

}  // namespace ard::emulator
