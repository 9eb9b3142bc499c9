# Host tests. CTest labels: core, emulator, kernels, racecheck.
add_library(ard_emulator STATIC csrc/testing/block_engine.cpp csrc/testing/shared_arrays.cpp)
target_link_libraries(ard_emulator PUBLIC ${CMAKE_DL_LIBS})
if(ARD_FAST_SANITIZE STREQUAL "thread")
  # The engine's bookkeeping stays out of the racecheck (see block_engine.cpp).
  target_compile_options(ard_emulator PRIVATE -fno-sanitize=thread)
  target_compile_definitions(ard_emulator PUBLIC ARD_EMU_TSAN=1)
endif()

function(ard_test name label)
  add_executable(${name} tests/cpp/${name}.cpp)
  target_link_libraries(${name} PRIVATE ard_emulator)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT 300)
endfunction()

# The kernels use nvcc's pragmas. The CPU loops, their counterpart, go without function clones: the
# loader resolves those before a sanitizer's run time is ready.
file(GLOB ard_cpu_sources CONFIGURE_DEPENDS csrc/cpu/*.cpp)
add_library(ard_kernels STATIC ${ard_cpu_sources})
target_compile_definitions(ard_kernels PUBLIC ARD_CPU_LEVEL=1)
target_compile_options(ard_kernels PUBLIC -Wno-unknown-pragmas)
target_link_libraries(ard_kernels PUBLIC ard_emulator)

ard_test(test_core core)
ard_test(test_emulator emulator)
# One program a family of kernels: tests/cpp/test_*_emulated.cpp.
file(GLOB ard_kernel_tests CONFIGURE_DEPENDS tests/cpp/test_*_emulated.cpp)
foreach(path IN LISTS ard_kernel_tests)
  get_filename_component(name ${path} NAME_WE)
  ard_test(${name} kernels)
  target_link_libraries(${name} PRIVATE ard_kernels)
endforeach()

if(ARD_FAST_SANITIZE STREQUAL "thread")
  # The racecheck is itself checked: a missing barrier must be reported, in the samples and for every
  # __syncthreads and cluster barrier of the real kernels.
  add_executable(racecheck_samples tests/cpp/racecheck_samples.cpp)
  target_link_libraries(racecheck_samples PRIVATE ard_emulator)
  add_executable(racecheck_kernels tests/cpp/racecheck_kernels.cpp)
  target_link_libraries(racecheck_kernels PRIVATE ard_kernels)
  add_test(NAME racecheck_samples_right COMMAND racecheck_samples right)
  foreach(fault no_first_barrier no_second_barrier no_warp_barrier no_cluster_barrier)
    add_test(NAME racecheck_samples_${fault} COMMAND racecheck_samples ${fault})
    set_tests_properties(racecheck_samples_${fault} PROPERTIES
      PASS_REGULAR_EXPRESSION "WARNING: ThreadSanitizer: data race")
    list(APPEND racechecks racecheck_samples_${fault})
  endforeach()
  add_test(NAME racecheck_every_barrier
    COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:racecheck_kernels>
            -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/every_barrier.cmake)
  set_tests_properties(racecheck_samples_right racecheck_every_barrier ${racechecks} PROPERTIES
    LABELS racecheck TIMEOUT 300)
endif()
