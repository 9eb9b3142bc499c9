// A decoded kernel: types, instructions, what stands around them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ard::emulator {

// As PTX names them.
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

// clang-format off
enum class Type : u8 {
  none, pred, b8, b16, b32, b64, u8, u16, u32, u64, s8, s16, s32, s64, f16, bf16, f16x2, bf16x2, f32, f64
};
enum class Rounding : u8 { none, nearest, zero, down, up };
enum class Space : u8 { generic, global, shared, local, param };
// What the scheduler does at an instruction. none: calls its handler; warp: too, once the threads of its mask are there.
enum class Control : u8 { none, branch, table, exit, trap, unsupported, warp, block, cluster_arrive, cluster_wait };
// Registers that a thread finds set.
enum class Special : u8 {
  tid, ntid, ctaid, nctaid, laneid, warpid, lanemask_eq, lanemask_lt, lanemask_le, lanemask_gt, lanemask_ge,
  cluster_ctarank, cluster_nctarank, clusterid, nclusterid, zero, one
};
// clang-format on

constexpr unsigned size_of(Type type) {
  constexpr u8 kSizes[] = {1, 1, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 4, 4, 8};
  return kSizes[unsigned(type)];
}
constexpr bool is_float(Type type) { return type >= Type::f16; }

struct Warp;
struct Instruction;
using Handler = void (*)(Warp&, const Instruction&);

// A register of the warp, or as ~index a constant of the kernel.
using Operand = s32;
constexpr Operand kNoOperand = INT32_MIN;

struct Instruction {
  Handler run = nullptr;
  Operand operands[6] = {kNoOperand, kNoOperand, kNoOperand, kNoOperand, kNoOperand, kNoOperand};
  Operand guard = kNoOperand;
  s32 offset = 0;  // that is added to an address
  u32 target = 0;  // of a branch: instruction, or table of them
  Control control = Control::none;
  Rounding rounding = Rounding::none;
  bool guard_negated = false;
  u8 destinations = 0;  // of the operands: the first ones
  u8 vector = 1;        // elements of ld, st and mov
  u8 mode = 0;          // what else the handler wants to know
};

// Where an instruction stands in the PTX, and why it is not supported if it is not.
struct Place {
  unsigned line;
  std::string_view text;
  std::string problem;
};

struct Code {
  std::vector<Instruction> instructions;
  std::vector<std::vector<u32>> tables;  // of brx
  std::vector<u64> constants;            // 32 of each, one a lane
  unsigned registers = 0;
  std::vector<std::pair<Special, Operand>> specials;
  unsigned static_shared = 0, dynamic_alignment = 16, local_bytes = 0;
  unsigned granule = 4;  // the smallest access to shared memory: what the race check keeps apart

  unsigned dynamic_offset() const {  // dynamic shared memory lies behind the static
    return (static_shared + dynamic_alignment - 1) / dynamic_alignment * dynamic_alignment;
  }
};

}  // namespace ard::emulator
