// The module _C_rtc: the CUDA implementations (*_ops_cuda.cpp) on kernels that NVRTC compiles while
// the program runs. Python does the compiling; this is how it learns what there is and hands over
// what it has made.
#include <Python.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "driver/kernel.h"

namespace ard {
namespace {

PyObject* resolver = nullptr;  // under the GIL

// The text of the Python error that is set, which is cleared: "ImportError: no cupy".
std::string take_error() {
  PyObject *type = nullptr, *value = nullptr, *trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  PyErr_NormalizeException(&type, &value, &trace);
  const auto text_of = [](PyObject* object) {
    const char* text = object ? PyUnicode_AsUTF8AndSize(object, nullptr) : nullptr;
    std::string out = text ? text : "?";
    Py_XDECREF(object);
    PyErr_Clear();
    return out;
  };
  const std::string name = text_of(type ? PyObject_GetAttrString(type, "__name__") : nullptr);
  const std::string text = text_of(value ? PyObject_Str(value) : nullptr);
  Py_XDECREF(type);
  Py_XDECREF(value);
  Py_XDECREF(trace);
  return name + ": " + text;
}

driver::Function resolve(driver::Device device, const std::string& source,
                         const std::string& name) {
  const PyGILState_STATE state = PyGILState_Ensure();
  void* made = nullptr;
  std::string error;
  if (resolver) {
    PyObject* callable = resolver;
    Py_INCREF(callable);
    PyObject* answer = PyObject_CallFunction(callable, "iss", device, source.c_str(), name.c_str());
    Py_DECREF(callable);
    if (answer) {
      made = PyLong_AsVoidPtr(answer);
      Py_DECREF(answer);
    }
    if (PyErr_Occurred()) {
      error = take_error();
    } else if (!made) {
      error = "the resolver gave no function";
    }
  } else {
    error = "no resolver is set";
  }
  PyGILState_Release(state);
  if (!error.empty()) {
    throw std::runtime_error("ard_fast: " + name + " could not be compiled for cuda:" +
                             std::to_string(device) + ": " + error);
  }
  return static_cast<driver::Function>(made);
}

PyObject* kernels(PyObject*, PyObject*) {
  std::vector<std::tuple<std::string, std::string>> all;
  for (const driver::Kernel* k = driver::first_kernel(); k; k = k->next()) {
    all.emplace_back(k->source(), k->name());
  }
  std::sort(all.begin(), all.end());
  PyObject* list = PyList_New(0);
  for (const auto& [source, name] : all) {
    PyObject* item = list ? Py_BuildValue("ss", source.c_str(), name.c_str()) : nullptr;
    const bool added = item && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    if (!added) {
      Py_XDECREF(list);
      return nullptr;
    }
  }
  return list;
}

PyObject* set_resolver(PyObject*, PyObject* callable) {
  if (callable != Py_None && !PyCallable_Check(callable)) {
    PyErr_SetString(PyExc_TypeError, "set_resolver: expected a callable or None");
    return nullptr;
  }
  PyObject* before = resolver;
  resolver = callable == Py_None ? nullptr : callable;
  Py_XINCREF(resolver);
  Py_XDECREF(before);
  Py_RETURN_NONE;
}

PyObject* store(PyObject*, PyObject* args) {
  int device = 0;
  const char *source = nullptr, *name = nullptr;
  PyObject* function = nullptr;
  if (!PyArg_ParseTuple(args, "issO", &device, &source, &name, &function)) return nullptr;
  void* handle = PyLong_AsVoidPtr(function);
  if (PyErr_Occurred()) return nullptr;
  for (driver::Kernel* k = driver::first_kernel(); k; k = k->next()) {
    if (k->source() != source || k->name() != name) continue;
    try {
      k->store(device, static_cast<driver::Function>(handle));
    } catch (const std::runtime_error& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
      return nullptr;
    }
    Py_RETURN_NONE;
  }
  PyErr_Format(PyExc_ValueError, "store: there is no kernel %s in %s", name, source);
  return nullptr;
}

PyMethodDef methods[] = {
    {"kernels", kernels, METH_NOARGS,
     "kernels() -> list[tuple[str, str]]\n\nAll kernels: the file that defines each, to be "
     "included, and its name expression."},
    {"set_resolver", set_resolver, METH_O,
     "set_resolver(f)\n\nf(device, file, name) gives the CUfunction of a kernel as an int, when it "
     "is first needed on a device; from any thread, perhaps from two at once."},
    {"store", store, METH_VARARGS,
     "store(device, file, name, function)\n\nHands over a CUfunction beforehand; 0 takes it "
     "back."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace ard

// Importing it runs the registrations under the CUDA key as well.
PyMODINIT_FUNC PyInit__C_rtc() {
  static PyModuleDef module = {PyModuleDef_HEAD_INIT,
                               "_C_rtc",
                               nullptr,
                               -1,
                               ard::methods,
                               nullptr,
                               nullptr,
                               nullptr,
                               nullptr};
  ard::driver::set_resolver(&ard::resolve);
  return PyModule_Create(&module);
}
