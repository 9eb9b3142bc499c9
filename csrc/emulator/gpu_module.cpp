// The module _emulated: the extension as nvcc compiles it, on the emulated device. Its operators
// are ard_fast_emulated::*, on CPU tensors; the functions here steer the device.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulator/bindings.h"
#include "emulator/device.h"

namespace py = pybind11;

PYBIND11_MODULE(_emulated, m) {
  using namespace ard::emulator;
  bind(m);
  m.def("choose",
        [](int arch, int code, int max_shared) { Device::get().choose(arch, code, max_shared); });
  m.def("set_options", [](const Options& options) { Device::get().options = options; });
  m.def("forget_memory", [] { Device::get().memory.clear(); });
  m.def("add_memory", [](uintptr_t begin, size_t bytes, bool writable) {
    Device::get().memory.add(reinterpret_cast<const void*>(begin), bytes, writable);
  });
  m.def("take_error", [] { return Device::get().take_error(); });
  m.def(
      "take_launches",
      [] {
        py::list all;
        for (const Launched& l : std::exchange(Device::get().launched, {})) {
          all.append(py::make_tuple(l.kernel, l.shape.grid, l.shape.block, l.shape.cluster,
                                    l.shape.dynamic_shared));
        }
        return all;
      },
      "(kernel, blocks, threads, cluster, dynamic shared bytes) of each launch since the last "
      "call.");
  m.def(
      "take_executed", [] { return Device::get().take_executed(); },
      "kernel -> (line, times) of each instruction that warps executed since the last call.");
  m.def("module_of", [](const std::string& name) { return Device::get().module_of(name); });
  m.def("kernels", [] { return Device::get().kernel_names(); });
  m.def("ptx_of", [](const std::string& name) { return Device::get().ptx_of(name); });
  m.def("replace_ptx", [](const std::string& name, const std::string& ptx) {
    Device::get().replace_ptx(name, ptx);
  });
  m.def("restore_ptx", [] { Device::get().restore_ptx(); });
  m.def("grant_shared", [](bool granted) { Device::get().grants_shared = granted; });
}
