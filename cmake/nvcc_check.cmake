# nvcc for every architecture, warnings as errors, register and spill limits: scripts/check_nvcc.py.
find_package(Python3 COMPONENTS Interpreter REQUIRED)
set(check_command ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/scripts/check_nvcc.py)
add_custom_target(nvcc_check COMMAND ${check_command} USES_TERMINAL)
add_test(NAME nvcc_check COMMAND ${check_command})
set_tests_properties(nvcc_check PROPERTIES LABELS cuda TIMEOUT 600)
