// Python module _emulator: the CUDA kernels on NumPy arrays, for the tests. Never in the wheel.
#include "testing/block_engine.h"
#include "testing/emulator_arrays.h"

namespace ard::emu {
namespace {

void set_order_by_name(const std::string& name, std::uint64_t seed) {
  if (name == "forward") {
    set_order(Order::kForward, seed);
  } else if (name == "reverse") {
    set_order(Order::kReverse, seed);
  } else if (name == "shuffled") {
    set_order(Order::kShuffled, seed);
  } else {
    throw std::invalid_argument("order: expected forward, reverse or shuffled, got " + name);
  }
}

}  // namespace
}  // namespace ard::emu

PYBIND11_MODULE(_emulator, m) {
  using namespace ard::emu;
  using py::arg;
  m.doc() = "The CUDA kernels of ard_fast on NumPy arrays, run by the host emulator.";
  py::register_exception<LaunchError>(m, "LaunchError");
  m.def("set_order", &set_order_by_name, arg("order"), arg("seed") = 0);
  bind_pgd(m);
  bind_kd(m);
  bind_pair(m);
  bind_apgd(m);
  bind_norm(m);
  bind_attack_gradient(m);
  bind_crop_flip(m);
  bind_fold(m);
  bind_affine(m);
}
