// Compares what csrc/driver/api.h declares of the CUDA driver with cuda.h. It only has to compile:
// tests/test_driver.py does that where a CUDA toolkit is.
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "driver/api.h"

namespace ard::driver {

#define ARD_SAME(ours, theirs) static_assert((ours) == int(theirs), #theirs)
ARD_SAME(kMultiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
ARD_SAME(kMaxSharedPerBlock, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
ARD_SAME(kClusterLaunch, CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH);
ARD_SAME(kStaticShared, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
ARD_SAME(kPtxVersion, CU_FUNC_ATTRIBUTE_PTX_VERSION);
ARD_SAME(kMaxDynamicShared, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
ARD_SAME(kNotCapturing, CU_STREAM_CAPTURE_STATUS_NONE);
ARD_SAME(kClusterDimension, CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
ARD_SAME(0, CUDA_SUCCESS);

static_assert(std::is_same_v<Context, CUcontext>);
static_assert(std::is_same_v<Function, CUfunction>);
static_assert(std::is_same_v<cuda::Stream, CUstream>);
static_assert(std::is_same_v<Device, CUdevice>);

#define ARD_SAME_PLACE(ours, their_struct, theirs)                                \
  static_assert(offsetof(LaunchConfig, ours) == offsetof(their_struct, theirs) && \
                    sizeof(LaunchConfig::ours) == sizeof(their_struct::theirs),   \
                #theirs)
ARD_SAME_PLACE(grid_x, CUlaunchConfig, gridDimX);
ARD_SAME_PLACE(grid_y, CUlaunchConfig, gridDimY);
ARD_SAME_PLACE(grid_z, CUlaunchConfig, gridDimZ);
ARD_SAME_PLACE(block_x, CUlaunchConfig, blockDimX);
ARD_SAME_PLACE(block_y, CUlaunchConfig, blockDimY);
ARD_SAME_PLACE(block_z, CUlaunchConfig, blockDimZ);
ARD_SAME_PLACE(shared_bytes, CUlaunchConfig, sharedMemBytes);
ARD_SAME_PLACE(stream, CUlaunchConfig, hStream);
ARD_SAME_PLACE(attributes, CUlaunchConfig, attrs);
ARD_SAME_PLACE(attribute_count, CUlaunchConfig, numAttrs);
static_assert(sizeof(LaunchConfig) == sizeof(CUlaunchConfig));

static_assert(sizeof(LaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(alignof(LaunchAttribute) == alignof(CUlaunchAttribute));
static_assert(offsetof(LaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(LaunchAttribute::value) == sizeof(CUlaunchAttributeValue));
static_assert(offsetof(CUlaunchAttributeValue, clusterDim.x) == 0 &&
              offsetof(CUlaunchAttributeValue, clusterDim.y) == 4 &&
              offsetof(CUlaunchAttributeValue, clusterDim.z) == 8);

// Whether two functions can stand for one another in a call: as many parameters, each of the same
// size and class (an enum for an int, one struct's pointer for another's).
template <typename A, typename B>
constexpr bool alike() {
  if constexpr (std::is_pointer_v<A>) {
    return std::is_pointer_v<B>;
  } else {
    return sizeof(A) == sizeof(B) && (std::is_integral_v<A> || std::is_enum_v<A>) &&
           (std::is_integral_v<B> || std::is_enum_v<B>);
  }
}

template <typename Ours, typename Theirs>
struct Calls : std::false_type {};

template <typename R, typename... P, typename S, typename... Q>
struct Calls<R (*)(P...), S (*)(Q...)> {
  static constexpr bool compare() {
    if constexpr (sizeof...(P) == sizeof...(Q)) {
      return alike<R, S>() && (alike<P, Q>() && ...);
    } else {
      return false;
    }
  }
  static constexpr bool value = compare();
};

// cuda.h renames a function that has come in a new version; the driver is asked for the plain name.
#define ARD_TEXT_OF(name) #name
#define ARD_TEXT(name) ARD_TEXT_OF(name)
constexpr bool same_text(const char* a, const char* b) {
  for (; *a && *a == *b; ++a, ++b) {
  }
  return *a == *b;
}
#define ARD_SAME_CALL(name)                                                   \
  static_assert(Calls<decltype(Api::name), decltype(&::name)>::value, #name); \
  static_assert(same_text(ARD_TEXT(name), #name), #name " has a newer version")
ARD_SAME_CALL(cuCtxGetDevice);
ARD_SAME_CALL(cuCtxSetCurrent);
ARD_SAME_CALL(cuDevicePrimaryCtxRetain);
ARD_SAME_CALL(cuDeviceGetAttribute);
ARD_SAME_CALL(cuFuncGetAttribute);
ARD_SAME_CALL(cuFuncSetAttribute);
ARD_SAME_CALL(cuLaunchKernelEx);
ARD_SAME_CALL(cuStreamIsCapturing);
ARD_SAME_CALL(cuGetErrorName);
ARD_SAME_CALL(cuGetErrorString);

}  // namespace ard::driver
