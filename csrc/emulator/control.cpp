// Branches, ends and barriers of blocks and clusters: what the scheduler itself carries out.
#include "emulator/decoder.h"

namespace ard::emulator {
namespace {

// bar.sync number{, threads}; bar.red.op result, number{, threads}, {!}predicate.
// Operands: result or none, number, threads or none, predicate or none. Mode: 0, 1 + operation, + 4
// if negated.
void decode_barrier(Decoder& d) {
  d.out.control = Control::block;
  d.drop("cta", "aligned");
  if (d.take("sync")) {
    if (d.operands.size() > 2) d.expect(2);
    d.out.operands[1] = d.source(d.operands.at(0), Type::u32);
    if (d.operands.size() == 2) d.out.operands[2] = d.source(d.operands[1], Type::u32);
    return;
  }
  if (!d.take("red")) return;
  d.out.mode = static_cast<uint8_t>(1 + d.take_one_of({"popc", "and", "or"}));
  d.take_type();
  if (d.operands.size() != 4) d.expect(3);
  const std::string_view predicate = d.operands.back();
  const bool negated = predicate[0] == '!';
  if (negated) d.out.mode |= 4;
  d.out.operands[0] = d.destination(d.operands[0]);
  d.out.operands[1] = d.source(d.operands[1], Type::u32);
  if (d.operands.size() == 4) d.out.operands[2] = d.source(d.operands[2], Type::u32);
  d.out.operands[3] = d.predicate(predicate.substr(negated ? 1 : 0));
}

}  // namespace

bool decode_control(Decoder& d) {
  if (d.opcode == "bra") {
    d.take("uni");
    d.expect(1);
    d.out.control = Control::branch;
    d.label = d.operands[0];
    return true;
  }
  if (d.opcode == "brx") {
    d.drop("idx", "uni");
    d.expect(2);
    d.out.control = Control::table;
    d.out.operands[0] = d.source(d.operands[0], Type::u32);
    d.label = d.operands[1];
    return true;
  }
  if (d.opcode == "ret" || d.opcode == "exit") {
    d.take("uni");
    d.out.control = Control::exit;
    return true;
  }
  if (d.opcode == "trap" || d.opcode == "brkpt") {
    d.out.control = Control::trap;
    return true;
  }
  if (d.opcode != "bar" && d.opcode != "barrier") return false;
  if (d.take("cluster")) {
    const int which = d.take_one_of({"arrive", "wait"});
    d.out.control = which == 0 ? Control::cluster_arrive : Control::cluster_wait;
    // .relaxed would order nothing: not supported
    d.drop("aligned", which == 0 ? "release" : "acquire");
    return true;
  }
  if (d.has("warp")) return false;
  decode_barrier(d);
  return true;
}

}  // namespace ard::emulator
