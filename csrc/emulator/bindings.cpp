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
    const py::array array = py::array::ensure(argument);
    if (!array) throw py::type_error("arguments are NumPy arrays and scalars");
    const bool by_pointer = py::isinstance<py::array>(argument);
    const void* data = array.data();
    const size_t bytes = by_pointer ? sizeof data : size_t(array.nbytes());
    const size_t index = values.size(), size = sizes[index];
    if (bytes != size) {
      throw py::value_error("argument " + std::to_string(index) + " of " + name + " has " +
                            std::to_string(size) + " bytes, got " + std::to_string(bytes));
    }
    values.emplace_back(size);
    std::memcpy(values.back().data(), by_pointer ? static_cast<const void*>(&data) : data, bytes);
    if (by_pointer) memory.add(data, size_t(array.nbytes()), array.writeable());
  }
  std::vector<void*> parameters;
  for (std::vector<uint8_t>& value : values) parameters.push_back(value.data());
  run(kernel, LaunchShape{grid, block, cluster, dynamic_shared}, parameters.data(), memory,
      options);
}

}  // namespace

void bind(py::module_& module) {
  py::register_local_exception<Fault>(module, "Fault", PyExc_RuntimeError);
  py::enum_<Approximation>(module, "Approximation", py::module_local())
      .value("exact", Approximation::exact)
      .value("extreme", Approximation::extreme)
      .value("random", Approximation::random);
  py::enum_<ThreadOrder>(module, "ThreadOrder", py::module_local())
      .value("forward", ThreadOrder::forward)
      .value("reverse", ThreadOrder::reverse)
      .value("shuffled", ThreadOrder::shuffled);
  py::class_<Options>(module, "Options", py::module_local())
      .def(py::init([](Approximation approximation, ThreadOrder order, bool contract,
                       uint64_t seed) { return Options{approximation, order, contract, seed}; }),
           py::kw_only(), py::arg("approximation") = Approximation::exact,
           py::arg("order") = ThreadOrder::forward, py::arg("contract") = false,
           py::arg("seed") = 0)
      .def_readwrite("approximation", &Options::approximation)
      .def_readwrite("order", &Options::order)
      .def_readwrite("contract", &Options::contract)
      .def_readwrite("seed", &Options::seed);
  py::class_<Kernel>(module, "Kernel", py::module_local())
      .def_property_readonly("static_shared", &Kernel::static_shared)
      .def_property_readonly("max_threads", &Kernel::max_threads)
      .def_property_readonly("parameter_sizes", &Kernel::parameter_sizes)
      .def_property_readonly("launches", &Kernel::launches)
      .def_property_readonly("instructions", &Kernel::instructions)
      .def("take_executed", &Kernel::take_executed);
  py::class_<Program>(module, "Program", py::module_local())
      .def(py::init<const std::string&>(), py::arg("ptx"))
      .def_property_readonly("target", &Program::target)
      .def("kernels", &Program::kernels)
      .def("kernel", &kernel_of, py::return_value_policy::reference_internal)
      .def("launch", &launch, py::arg("name"), py::kw_only(), py::arg("grid") = 1,
           py::arg("block") = 1, py::arg("dynamic_shared") = 0, py::arg("cluster") = 1,
           py::arg("options") = Options());
}

}  // namespace ard::emulator
