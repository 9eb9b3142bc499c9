// Loads, stores, atomics and addresses.
#include <algorithm>

#include "emulator/decoder.h"
#include "emulator/warp.h"

namespace ard::emulator {
namespace {

constexpr uint64_t kWindowSize = uint64_t{1} << 32;

uint8_t* shared_at(Warp& warp, unsigned lane, const Instruction& i, uint32_t address,
                   unsigned bytes, Access access) {
  Block* block = warp.block;
  const uint32_t rank = address >> kRankShift, offset = address & ((1u << kRankShift) - 1);
  if (rank) {
    if (rank > warp.launch->shape.cluster)
      fault(warp, lane, i, "shared address of no block of the cluster");
    block = &warp.launch->blocks[rank - 1];
  }
  if (offset < kSharedStart || offset + bytes > kSharedStart + block->shared.size()) {
    fault(warp, lane, i,
          "shared memory: offset " + std::to_string(static_cast<int64_t>(offset) - kSharedStart) +
              " + " + std::to_string(bytes) + " of " + std::to_string(block->shared.size()) +
              " bytes");
  }
  if (block != warp.block) {
    if (!warp.clocks[lane].waits)
      fault(warp, lane, i, "another block's shared memory before any cluster barrier");
    if (block->live != block->threads) {
      fault(warp, lane, i, "shared memory of a block of which threads have exited");
    }
  }
  const uint32_t at = offset - kSharedStart;
  const std::string problem =
      block->shared.check(warp.launch->epochs, warp, lane, at, bytes, access);
  if (!problem.empty()) fault(warp, lane, i, problem);
  return block->shared.at(at);
}

uint8_t* local_at(Warp& warp, unsigned lane, const Instruction& i, uint64_t address, unsigned bytes,
                  Access access) {
  const unsigned size = warp.launch->code.local_bytes;
  if (address + bytes > size) fault(warp, lane, i, "local memory out of bounds");
  const size_t at = size_t{lane} * size + address;
  if (access == Access::write) {
    std::fill_n(warp.local_written + at, bytes, uint8_t{1});
  } else if (!std::all_of(warp.local_written + at, warp.local_written + at + bytes,
                          [](uint8_t b) { return b; })) {
    fault(warp, lane, i, "read of local memory that has not been written");
  }
  return warp.local + at;
}

uint8_t* parameter_at(Warp& warp, unsigned lane, const Instruction& i, uint64_t address,
                      unsigned bytes, Access access) {
  if (access != Access::read) fault(warp, lane, i, "write to a parameter");
  if (address + bytes > warp.launch->parameters.size())
    fault(warp, lane, i, "parameter out of bounds");
  return warp.launch->parameters.data() + address;
}

uint8_t* global_at(Warp& warp, unsigned lane, const Instruction& i, uint64_t address,
                   unsigned bytes, Access access) {
  Launch& launch = *warp.launch;
  const bool write = access != Access::read;
  GlobalMemory::Range& last = write ? launch.last_write : launch.last_read;
  if (!last.contains(address, address + bytes)) {
    const GlobalMemory::Range* found = launch.memory.find(address, address + bytes, write);
    if (!found) found = launch.module_memory.find(address, address + bytes, write);
    if (!found) {
      const bool readable = write && (launch.memory.find(address, address + bytes, false) ||
                                      launch.module_memory.find(address, address + bytes, false));
      fault(warp, lane, i,
            readable
                ? "write to global memory that is read-only"
                : std::string(write ? "write to" : "read of") + " global memory out of bounds");
    }
    last = *found;
  }
  return reinterpret_cast<uint8_t*>(address);
}

template <Space kSpace>
inline uint8_t* locate(Warp& warp, unsigned lane, const Instruction& i, uint64_t base,
                       unsigned bytes, Access access) {
  // Addresses of shared memory have 32 bits.
  const uint64_t address = kSpace == Space::shared
                               ? static_cast<uint32_t>(base + static_cast<int64_t>(i.offset))
                               : base + static_cast<int64_t>(i.offset);
  if (address & (bytes - 1)) {
    fault(warp, lane, i,
          "misaligned address " + std::to_string(address) + " for " + std::to_string(bytes) +
              " bytes");
  }
  switch (kSpace) {
    case Space::shared:
      return shared_at(warp, lane, i, static_cast<uint32_t>(address), bytes, access);
    case Space::local:
      return local_at(warp, lane, i, address, bytes, access);
    case Space::param:
      return parameter_at(warp, lane, i, address, bytes, access);
    case Space::global:
      return global_at(warp, lane, i, address, bytes, access);
    case Space::generic:
      break;
  }
  if (address - kSharedWindow < kWindowSize) {
    return shared_at(warp, lane, i, static_cast<uint32_t>(address - kSharedWindow), bytes, access);
  }
  if (address - kLocalWindow < kWindowSize)
    return local_at(warp, lane, i, address - kLocalWindow, bytes, access);
  return global_at(warp, lane, i, address, bytes, access);
}

// Operands: up to four destinations, the address at 4.
template <class T, Space kSpace>
void load(Warp& warp, const Instruction& i) {
  const uint64_t* addresses = warp.slot(i.operands[4]);
  const unsigned bytes = static_cast<unsigned>(sizeof(T)) * i.vector;
  if (i.vector == 1) {
    uint64_t* to = warp.out(i.operands[0]);
    warp.each([&](unsigned lane) {
      T value;
      std::memcpy(&value, locate<kSpace>(warp, lane, i, addresses[lane], bytes, Access::read),
                  sizeof value);
      put<T>(to[lane], value);
    });
    return;
  }
  warp.each([&](unsigned lane) {
    T values[4];
    std::memcpy(values, locate<kSpace>(warp, lane, i, addresses[lane], bytes, Access::read), bytes);
    for (unsigned part = 0; part < i.vector; ++part)
      put<T>(warp.out(i.operands[part])[lane], values[part]);
  });
}

// Operands: the address, up to four sources.
template <class T, Space kSpace>
void store(Warp& warp, const Instruction& i) {
  const uint64_t* addresses = warp.slot(i.operands[0]);
  const unsigned bytes = static_cast<unsigned>(sizeof(T)) * i.vector;
  warp.each([&](unsigned lane) {
    T values[4];
    for (unsigned part = 0; part < i.vector; ++part)
      values[part] = get<T>(warp.slot(i.operands[1 + part])[lane]);
    std::memcpy(locate<kSpace>(warp, lane, i, addresses[lane], bytes, Access::write), values,
                bytes);
  });
}

enum class Update : uint8_t {
  add,
  minimum,
  maximum,
  conjunction,
  disjunction,
  difference,
  exchange,
  compare
};

template <class T>
T updated(Update update, T old, T b, T c) {
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    switch (update) {
      case Update::add:
        return static_cast<T>(U(old) + U(b));
      case Update::minimum:
        return std::min(old, b);
      case Update::maximum:
        return std::max(old, b);
      case Update::conjunction:
        return old & b;
      case Update::disjunction:
        return old | b;
      case Update::difference:
        return old ^ b;
      case Update::exchange:
        return b;
      case Update::compare:
        return old == b ? c : old;
    }
  }
  return old + b;
}

// One lane after the other, and so atomic. Operands: the old value or none, address, b, c or none.
template <class T, Space kSpace>
void update(Warp& warp, const Instruction& i) {
  const uint64_t *addresses = warp.slot(i.operands[1]), *b = warp.slot(i.operands[2]);
  const uint64_t* c = i.operands[3] == kNoOperand ? b : warp.slot(i.operands[3]);
  warp.each([&](unsigned lane) {
    uint8_t* at = locate<kSpace>(warp, lane, i, addresses[lane], sizeof(T), Access::atomic);
    T old;
    std::memcpy(&old, at, sizeof old);
    const T result = updated<T>(static_cast<Update>(i.mode), old, get<T>(b[lane]), get<T>(c[lane]));
    std::memcpy(at, &result, sizeof result);
    if (i.operands[0] != kNoOperand) put<T>(warp.out(i.operands[0])[lane], old);
  });
}

uint64_t window_of(const Instruction& i) {
  const Space space = static_cast<Space>(i.mode);
  return space == Space::shared ? kSharedWindow : space == Space::local ? kLocalWindow : 0;
}
void to_generic(Warp& warp, const Instruction& i) {
  unary<uint64_t, uint64_t>(warp, i, [window = window_of(i)](uint64_t a) { return a + window; });
}
// An address of another space becomes 0, which is nobody's.
void from_generic(Warp& warp, const Instruction& i) {
  unary<uint64_t, uint64_t>(warp, i, [window = window_of(i)](uint64_t a) {
    return !window || a - window < kWindowSize ? a - window : uint64_t{0};
  });
}

// The address in another block of the cluster; mode 1: of 32 bits, in shared memory; else generic.
void map_to_block(Warp& warp, const Instruction& i) {
  const uint64_t *a = warp.slot(i.operands[1]), *ranks = warp.slot(i.operands[2]);
  uint64_t* to = warp.out(i.operands[0]);
  warp.each([&](unsigned lane) {
    const uint32_t rank = get<uint32_t>(ranks[lane]);
    if (rank >= warp.launch->shape.cluster) {
      fault(warp, lane, i, "mapa: the cluster has no block " + std::to_string(rank));
    }
    const uint32_t offset = static_cast<uint32_t>(a[lane]) & ((1u << kRankShift) - 1);
    to[lane] = (offset | (rank + 1) << kRankShift) | (i.mode ? 0 : kSharedWindow);
  });
}

void nothing(Warp&, const Instruction&) {}

Space take_space(Decoder& d) {
  constexpr struct {
    std::string_view name;
    Space space;
  } kSpaces[] = {
      {"global", Space::global},          {"shared", Space::shared}, {"shared::cta", Space::shared},
      {"shared::cluster", Space::shared}, {"local", Space::local},   {"param", Space::param},
      {"const", Space::global},
  };
  for (const auto& each : kSpaces) {
    if (d.take(each.name)) return each.space;
  }
  return Space::generic;
}

// Cache hints; orders and scopes, which mean nothing where threads run one after another.
void drop_hints(Decoder& d) {
  d.drop("nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "weak", "relaxed", "acquire", "release",
         "acq_rel");
  d.drop("volatile", "cta", "cluster", "gpu", "sys");
  for (const char* level : {"L1::", "L2::"}) {
    for (const char* hint : {"evict_normal", "evict_unchanged", "evict_first", "evict_last",
                             "no_allocate", "64B", "128B", "256B"}) {
      d.take(std::string(level) + hint);
    }
  }
}

template <class T, template <class, Space> class Form>
Handler by_space(Space space) {
  switch (space) {
    case Space::global:
      return Form<T, Space::global>::handler;
    case Space::shared:
      return Form<T, Space::shared>::handler;
    case Space::local:
      return Form<T, Space::local>::handler;
    case Space::param:
      return Form<T, Space::param>::handler;
    default:
      return Form<T, Space::generic>::handler;
  }
}
template <class T, Space kSpace>
struct Load {
  static constexpr Handler handler = load<T, kSpace>;
};
template <class T, Space kSpace>
struct Store {
  static constexpr Handler handler = store<T, kSpace>;
};
template <class T, Space kSpace>
struct Atomic {
  static constexpr Handler handler = update<T, kSpace>;
};

std::vector<std::string_view> elements(std::string_view text) {
  if (text[0] != '{') return {text};
  return split(text.substr(1, text.size() - 2));
}

unsigned take_vector(Decoder& d) { return d.take("v2") ? 2 : d.take("v4") ? 4 : 1; }

void decode_load(Decoder& d) {
  const Space space = take_space(d);
  drop_hints(d);
  d.out.vector = static_cast<uint8_t>(take_vector(d));
  const Type type = d.take_type();
  d.expect(2);
  const auto parts = elements(d.operands[0]);
  if (parts.size() != d.out.vector) throw Fault("another number of elements than the vector has");
  for (size_t part = 0; part < parts.size(); ++part)
    d.out.operands[part] = d.destination(parts[part]);
  d.address(d.operands[1], 4, space);
  if (type == Type::s8)
    d.out.run = by_space<int8_t, Load>(space);
  else if (type == Type::s16)
    d.out.run = by_space<int16_t, Load>(space);
  else if (type == Type::s32)
    d.out.run = by_space<int32_t, Load>(space);
  else
    d.out.run = by_size(
        type, [&](auto tag) { return by_space<typename decltype(tag)::type, Load>(space); });
  d.note_access(space, size_of(type) * d.out.vector);
}

void decode_store(Decoder& d) {
  const Space space = take_space(d);
  drop_hints(d);
  d.out.vector = static_cast<uint8_t>(take_vector(d));
  const Type type = d.take_type();
  d.expect(2);
  d.address(d.operands[0], 0, space);
  const auto parts = elements(d.operands[1]);
  if (parts.size() != d.out.vector) throw Fault("another number of elements than the vector has");
  for (size_t part = 0; part < parts.size(); ++part)
    d.out.operands[1 + part] = d.source(parts[part], type);
  d.out.run =
      by_size(type, [&](auto tag) { return by_space<typename decltype(tag)::type, Store>(space); });
  d.note_access(space, size_of(type) * d.out.vector);
}

void decode_atomic(Decoder& d) {
  const Space space = take_space(d);
  drop_hints(d);
  const bool reduction = d.opcode == "red";
  const int what = d.take_one_of({"add", "min", "max", "and", "or", "xor", "exch", "cas"});
  const Type type = d.take_type();
  const size_t first = reduction ? 0 : 1;
  d.expect(first + (what == 7 ? 3 : 2));
  if (!reduction) d.out.operands[0] = d.destination(d.operands[0]);
  d.address(d.operands[first], 1, space);
  d.out.operands[2] = d.source(d.operands[first + 1], type);
  if (what == 7) d.out.operands[3] = d.source(d.operands[first + 2], type);
  if (what < 0) return;
  d.out.mode = static_cast<uint8_t>(what);
  if (type == Type::f32 && what == 0) d.out.run = by_space<float, Atomic>(space);
  if (type == Type::f64 && what == 0) d.out.run = by_space<double, Atomic>(space);
  if (!is_float(type) && size_of(type) >= 4) {
    d.out.run = by_integer(
        type, [&](auto tag) { return by_space<typename decltype(tag)::type, Atomic>(space); });
  }
  d.note_access(space, size_of(type));
}

}  // namespace

bool decode_memory(Decoder& d) {
  if (d.opcode == "ld" || d.opcode == "ldu") {
    decode_load(d);
    return true;
  }
  if (d.opcode == "st") {
    decode_store(d);
    return true;
  }
  if (d.opcode == "atom" || d.opcode == "red") {
    decode_atomic(d);
    return true;
  }
  if (d.opcode == "cvta") {
    const bool to = d.take("to");
    const Space space = take_space(d);
    const Type type = d.take_type();
    d.simple(2, type);
    d.out.mode = static_cast<uint8_t>(space);
    if (space != Space::generic && size_of(type) == 8) d.out.run = to ? from_generic : to_generic;
    return true;
  }
  if (d.opcode == "mapa") {
    const Space space = take_space(d);
    const Type type = d.take_type();
    d.simple(3, type);
    d.out.mode = space == Space::shared;
    d.out.run = map_to_block;
    return true;
  }
  if (d.opcode == "prefetch" || d.opcode == "membar" || d.opcode == "fence") {
    take_space(d);
    drop_hints(d);
    d.drop("sc", "gl", "L1", "L2");
    d.out.run = nothing;
    return true;
  }
  return false;
}

}  // namespace ard::emulator
