#include <pybind11/pybind11.h>

#include "emulator/bindings.h"

PYBIND11_MODULE(_interpreter, module) { ard::emulator::bind(module); }
