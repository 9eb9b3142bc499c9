// The module _C_cuda. The CUDA implementations register themselves in the *_ops_cuda.cpp files.
#include <Python.h>

// An empty module: importing it runs the registrations above.
PyMODINIT_FUNC PyInit__C_cuda() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
