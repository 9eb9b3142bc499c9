# The torch-facing sources, so that compile_commands.json covers them (clangd, clang-tidy) and
# `cmake --build build/dev --target ard_bindings` type-checks them. Only where torch is
# installed for the Python that CMake finds (-DPython3_EXECUTABLE=... chooses); nothing else needs it.
find_package(Python3 COMPONENTS Interpreter Development.Module QUIET)
if(Python3_Development.Module_FOUND)
  execute_process(
    COMMAND ${Python3_EXECUTABLE} -c "from importlib.util import find_spec; print(find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE torch_folder OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(EXISTS "${torch_folder}/include/torch/csrc/stable/library.h")
  file(GLOB_RECURSE ard_binding_sources CONFIGURE_DEPENDS csrc/*_ops.cpp csrc/module.cpp)
  add_library(ard_bindings OBJECT EXCLUDE_FROM_ALL ${ard_binding_sources})
  target_include_directories(ard_bindings SYSTEM PRIVATE
    ${torch_folder}/include ${torch_folder}/include/torch/csrc/api/include ${Python3_INCLUDE_DIRS})
  # As setup.py: the oldest torch and Python that the module runs on.
  target_compile_definitions(ard_bindings PRIVATE TORCH_TARGET_VERSION=0x020b000000000000 Py_LIMITED_API=0x030a0000)
  set_target_properties(ard_bindings PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_compile_features(ard_bindings PRIVATE cxx_std_20)
else()
  message(STATUS "torch is not installed for ${Python3_EXECUTABLE}: the bindings are left out")
endif()
