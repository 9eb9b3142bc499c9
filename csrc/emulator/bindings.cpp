#include "emulator/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>

#include "emulator/interpreter.h"

namespace py = pybind11;

namespace ard::emulator {
namespace {

const Kernel& kernel_of(const Program& program, const std::string& name) {
  const Kernel* kernel = program.find(name);
  if (!kernel) throw Fault("the program has no kernel " + name);
  return *kernel;
}

// Arrays are passed as pointers to their memory, which the kernel may touch; NumPy scalars by
// value.
void launch(const Program& program, const std::string& name, const py::args& arguments,
            unsigned grid, unsigned block, unsigned dynamic_shared, unsigned cluster,
            const Options& options) {
  const Kernel& kernel = kernel_of(program, name);
  const std::vector<unsigned>& sizes = kernel.parameter_sizes();
  if (arguments.size() != sizes.size()) {
    throw py::value_error(name + " takes " + std::to_string(sizes.size()) + " arguments, got " +
                          std::to_string(arguments.size()));
  }
  GlobalMemory memory;
  std::vector<std::vector<uint8_t>> values;
  for (const py::handle& argument : arguments) {
    const unsigned size = sizes[values.size()];
    values.emplace_back(size);
    const void* from = nullptr;
    const void* pointer = nullptr;
    size_t bytes = 0;
    const py::array array = py::array::ensure(argument);
    if (!array) throw py::type_error("arguments are NumPy arrays and scalars");
    if (py::isinstance<py::array>(argument)) {
      pointer = array.data();
      memory.add(pointer, static_cast<size_t>(array.nbytes()), array.writeable());
      from = &pointer;
      bytes = sizeof pointer;
    } else {
      from = array.data();
      bytes = static_cast<size_t>(array.nbytes());
    }
    if (bytes != size) {
      throw py::value_error("argument " + std::to_string(values.size() - 1) + " of " + name +
                            " has " + std::to_string(size) + " bytes, got " +
                            std::to_string(bytes));
    }
    std::memcpy(values.back().data(), from, bytes);
  }
  std::vector<void*> parameters;
  for (std::vector<uint8_t>& value : values) parameters.push_back(value.data());
  run(kernel, LaunchShape{grid, block, cluster, dynamic_shared}, parameters.data(), memory,
      options);
}

py::dict counters(const Program& program) {
  py::dict all;
  for (const std::string& name : program.kernels()) {
    const Kernel& kernel = *program.find(name);
    all[py::str(name)] = py::make_tuple(kernel.launches(), kernel.executed());
  }
  return all;
}

}  // namespace

void bind(py::module_& module) {
  py::register_exception<Fault>(module, "Fault", PyExc_RuntimeError);
  py::enum_<Approximation>(module, "Approximation")
      .value("exact", Approximation::exact)
      .value("extreme", Approximation::extreme)
      .value("random", Approximation::random);
  py::enum_<ThreadOrder>(module, "ThreadOrder")
      .value("forward", ThreadOrder::forward)
      .value("reverse", ThreadOrder::reverse)
      .value("shuffled", ThreadOrder::shuffled);
  py::class_<Options>(module, "Options")
      .def(py::init([](Approximation approximation, ThreadOrder order, bool contract,
                       uint64_t seed) { return Options{approximation, order, contract, seed}; }),
           py::kw_only(), py::arg("approximation") = Approximation::exact,
           py::arg("order") = ThreadOrder::forward, py::arg("contract") = false,
           py::arg("seed") = 0)
      .def_readwrite("approximation", &Options::approximation)
      .def_readwrite("order", &Options::order)
      .def_readwrite("contract", &Options::contract)
      .def_readwrite("seed", &Options::seed);
  py::class_<Program>(module, "Program")
      .def(py::init<const std::string&>(), py::arg("ptx"))
      .def_property_readonly("target", &Program::target)
      .def("kernels", &Program::kernels)
      .def("launch", &launch, py::arg("name"), py::kw_only(), py::arg("grid") = 1,
           py::arg("block") = 1, py::arg("dynamic_shared") = 0, py::arg("cluster") = 1,
           py::arg("options") = Options())
      .def("counters", &counters, "kernel -> (launches, executed instructions)")
      .def("static_shared",
           [](const Program& p, const std::string& name) {
             return kernel_of(p, name).static_shared();
           })
      .def("max_threads", [](const Program& p,
                             const std::string& name) { return kernel_of(p, name).max_threads(); })
      .def("parameter_sizes",
           [](const Program& p, const std::string& name) {
             return kernel_of(p, name).parameter_sizes();
           })
      .def(
          "coverage",
          [](const Program& p, const std::string& name) {
            const Kernel& kernel = kernel_of(p, name);
            return py::make_tuple(kernel.instructions(), kernel.never_executed());
          },
          "instructions, and those that no launch has reached");
}

}  // namespace ard::emulator
