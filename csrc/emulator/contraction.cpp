// What ptxas may do with a product that carries no rounding mode: round only once with the sum that
// it goes into. Here every such pair is fused, where the product and its factors still have their
// values at the sum.
#include <algorithm>

#include "emulator/kernel.h"

namespace ard::emulator {
namespace {

// Where a slot has been written, reading the instructions from the first on.
struct Writes {
  unsigned count = 0;   // in the whole kernel
  uint32_t latest = 0;  // the last one so far
};

template <class F>
void each_destination(const Instruction& i, F f) {
  for (unsigned at = 0; at < i.destinations; ++at) {
    if (i.operands[at] >= 0) f(i.operands[at]);
  }
}

}  // namespace

void contract(Code& code, const std::vector<FloatForm>& forms,
              const std::vector<uint32_t>& labels) {
  std::vector<Writes> writes(code.registers);
  const uint32_t count = static_cast<uint32_t>(forms.size());
  for (const Instruction& i : code.instructions) {
    each_destination(i, [&](Operand slot) { ++writes[slot].count; });
  }
  std::vector<uint32_t> product(code.registers, count);  // slot -> the multiplication that wrote it
  std::vector<uint8_t> starts(code.instructions.size() + 1);
  for (const uint32_t at : labels) starts[at] = 1;

  uint32_t block = 0;  // where the basic block begins
  // A register that is written at one place only keeps its value between the writes of those
  // computed from it.
  const auto unchanged_since = [&](Operand slot, uint32_t when) {
    if (slot < 0 || writes[slot].count <= 1) return true;
    return when >= block && writes[slot].latest < when;
  };
  for (uint32_t at = 0; at < count; ++at) {
    if (starts[at]) block = at;
    Instruction& i = code.instructions[at];
    const bool sums = forms[at].kind == FloatForm::add || forms[at].kind == FloatForm::subtract;
    for (unsigned side = 1; sums && i.guard == kNoOperand && side <= 2; ++side) {
      const Operand slot = i.operands[side];
      if (slot < 0 || product[slot] == count) continue;
      const uint32_t from = product[slot];
      const Instruction& multiplication = code.instructions[from];
      const bool same = forms[from].type == forms[at].type && forms[from].ftz == forms[at].ftz;
      const bool current =
          writes[slot].count == 1 || (from >= block && writes[slot].latest == from);
      if (!same || !current || !unchanged_since(multiplication.operands[1], from) ||
          !unchanged_since(multiplication.operands[2], from)) {
        continue;
      }
      const Operand other = i.operands[3 - side];
      i.operands[1] = multiplication.operands[1];
      i.operands[2] = multiplication.operands[2];
      i.operands[3] = other;
      const bool subtracts = forms[at].kind == FloatForm::subtract;
      i.mode = !subtracts ? 0 : side == 1 ? 2 : 1;  // a * b - c, c - a * b
      i.run = fused(forms[at].type, forms[at].ftz);
      break;
    }
    each_destination(i, [&](Operand slot) {
      writes[slot].latest = at;
      product[slot] = forms[at].kind == FloatForm::multiply && i.guard == kNoOperand ? at : count;
    });
    if (i.control != Control::none) block = at + 1;
  }
}

}  // namespace ard::emulator
