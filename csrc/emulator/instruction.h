// A decoded instruction, and the types and names that decoding it is about.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ard::emulator {

// The bits of NaN that arithmetic gives.
constexpr uint32_t kNan32 = 0x7fffffffu;
constexpr uint64_t kNan64 = 0xfff8000000000000u;
constexpr uint16_t kNan16 = 0x7fffu;

enum class Type : uint8_t {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  bf16,
  f16x2,
  bf16x2,
  f32,
  f64
};

constexpr unsigned size_of(Type type) {
  switch (type) {
    case Type::none:
    case Type::pred:
    case Type::b8:
    case Type::u8:
    case Type::s8:
      return 1;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
      return 8;
    default:
      return 4;
  }
}
constexpr bool is_float(Type type) { return type >= Type::f16; }
constexpr bool is_half(Type type) { return type >= Type::f16 && type <= Type::bf16x2; }
constexpr bool is_signed(Type type) { return type >= Type::s8 && type <= Type::s64; }

enum class Rounding : uint8_t { none, nearest, zero, down, up };
enum class Space : uint8_t { generic, global, shared, local, param };

// What the scheduler does at an instruction; `none`: calls its handler.
enum class Control : uint8_t {
  none,
  branch,
  table,
  exit,
  trap,
  unsupported,
  warp,   // waits for the threads of a mask, then calls its handler
  block,  // bar.sync
  cluster_arrive,
  cluster_wait
};

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);

// An operand is a slot: a register of the warp, or a constant of the kernel as ~index.
using Operand = int32_t;
constexpr Operand kNoOperand = INT32_MIN;

struct Instruction {
  Handler run = nullptr;
  Operand operands[6] = {kNoOperand, kNoOperand, kNoOperand, kNoOperand, kNoOperand, kNoOperand};
  Operand guard = kNoOperand;
  int32_t offset = 0;   // that is added to an address
  uint32_t target = 0;  // of a branch: instruction, or table of them
  Control control = Control::none;
  Rounding rounding = Rounding::none;
  bool guard_negated = false;
  uint8_t destinations = 0;  // of the operands: the first ones
  uint8_t vector = 1;        // elements of ld, st and mov
  uint8_t mode = 0;          // what else the handler wants to know
};

// Where it stands in the PTX, for faults and coverage.
struct Place {
  unsigned line = 0;
  std::string_view text;
  std::string problem;  // why it is not supported
};

// Registers that a thread finds set.
enum class Special : uint8_t {
  tid,
  ntid,
  ctaid,
  nctaid,
  laneid,
  warpid,
  lanemask_eq,
  lanemask_lt,
  lanemask_le,
  lanemask_gt,
  lanemask_ge,
  cluster_ctarank,
  cluster_nctarank,
  clusterid,
  nclusterid,
  zero,
  one
};

// A kernel's instructions, decoded.
struct Code {
  std::vector<Instruction> instructions;
  std::vector<std::vector<uint32_t>> tables;  // of brx
  std::vector<uint64_t> constants;            // 32 of each, one a lane
  unsigned registers = 0;
  std::vector<std::pair<Special, Operand>> specials;
  unsigned static_shared = 0, dynamic_alignment = 16, local_bytes = 0;
  unsigned granule = 4;  // the smallest access to shared memory: what the race check keeps apart
};

}  // namespace ard::emulator
