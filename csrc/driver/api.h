// The part of the CUDA driver's C interface that starting a kernel takes. Declared here, so that
// this builds where nothing of CUDA is installed; tests/cpp/driver_declarations.cpp compares the
// declarations with cuda.h.
#pragma once

#include <cstddef>

#include "cuda/geometry.h"

struct CUctx_st;
struct CUfunc_st;

namespace ard::driver {

using Context = CUctx_st*;
using Function = CUfunc_st*;
using Device = int;  // its ordinal
using Result = int;  // 0: success

constexpr int kMultiprocessors = 16;  // attributes of a device
constexpr int kMaxSharedPerBlock = 97;
constexpr int kClusterLaunch = 120;
constexpr int kStaticShared = 1;  // attributes of a function
constexpr int kPtxVersion = 5;
constexpr int kMaxDynamicShared = 8;
constexpr int kNotCapturing = 0;
constexpr int kClusterDimension = 4;  // an attribute of a launch

struct LaunchAttribute {
  int id;
  char pad[4];
  union alignas(8) {
    char room[64];
    struct {
      unsigned x, y, z;
    } cluster;
  } value;
};

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z;
  unsigned block_x, block_y, block_z;
  unsigned shared_bytes;
  cuda::Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

// The names are the driver's.
struct Api {
  Result (*cuCtxGetDevice)(Device*);
  Result (*cuCtxSetCurrent)(Context);
  Result (*cuDevicePrimaryCtxRetain)(Context*, Device);
  Result (*cuDeviceGetAttribute)(int* value, int attribute, Device);
  Result (*cuFuncGetAttribute)(int* value, int attribute, Function);
  Result (*cuFuncSetAttribute)(Function, int attribute, int value);
  Result (*cuLaunchKernelEx)(const LaunchConfig*, Function, void** parameters, void** extra);
  Result (*cuStreamIsCapturing)(cuda::Stream, int* status);
  Result (*cuGetErrorName)(Result, const char**);
  Result (*cuGetErrorString)(Result, const char**);
};

// Loaded at the first call. Throws std::runtime_error if there is no driver.
const Api& api();

// Throws std::runtime_error with what was done and the driver's words, unless it succeeded.
void check(Result result, const char* what);

// Makes the device's primary context current, which torch shares, unless the calling thread has a
// context of this device already: a new thread has none, and torch need not have given it one.
void make_current(Device device);

Device current_device();

}  // namespace ard::driver
