// The interpreter for Python, with NumPy arrays as global memory.
#pragma once

#include <pybind11/pybind11.h>

namespace ard::emulator {

void bind(pybind11::module_& module);

}  // namespace ard::emulator
