// What the extension calls of the CUDA runtime, for a machine without a GPU: kernels run on the
// emulated device as soon as they are launched, so streams need no attention.
#include <cuda_runtime_api.h>

#include <exception>

#include "emulator/device.h"

using ard::emulator::Device;
using ard::emulator::LaunchShape;

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local Configuration pushed;

cudaError_t launch(const void* host, dim3 grid, dim3 block, size_t shared, unsigned cluster,
                   void** arguments) {
  if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1) {
    Device::get().fail("a grid of more than one dimension is not emulated");
  } else {
    Device::get().launch(host, LaunchShape{grid.x, block.x, cluster, unsigned(shared)}, arguments);
  }
  return cudaSuccess;  // an error stays for cudaGetLastError
}

template <typename Body>
cudaError_t guarded(Body body) {
  try {
    body();
    return cudaSuccess;
  } catch (const std::exception& error) {
    Device::get().fail(error.what());
    return cudaErrorInvalidValue;
  }
}

}  // namespace

extern "C" {

// Registration, called by what nvcc generates. -------------------------------------------------

void** __cudaRegisterFatBinary(void* wrapper) {
  Device::get().add_code(wrapper);
  return static_cast<void**>(wrapper);
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void** wrapper, const char* host, char*, const char* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  Device::get().add_function(wrapper, host, name);
}

// Launches. -------------------------------------------------------------------------------------

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  pushed = {grid, block, shared, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared = pushed.shared;
  *static_cast<cudaStream_t*>(stream) = pushed.stream;
  return cudaSuccess;
}

// A kernel's handle is the address of its host function.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared, cudaStream_t) {
  return launch(kernel, grid, block, shared, 1, arguments);
}

cudaError_t cudaLaunchKernel(const void* host, dim3 grid, dim3 block, void** arguments,
                             size_t shared, cudaStream_t) {
  return launch(host, grid, block, shared, 1, arguments);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host,
                                void** arguments) {
  unsigned cluster = 1;
  for (unsigned n = 0; n < config->numAttrs; ++n) {
    if (config->attrs[n].id == cudaLaunchAttributeClusterDimension) {
      cluster = config->attrs[n].val.clusterDim.x;
    }
  }
  return launch(host, config->gridDim, config->blockDim, config->dynamicSmemBytes, cluster,
                arguments);
}

// Questions. ------------------------------------------------------------------------------------

cudaError_t cudaGetDevice(int* device) {
  *device = Device::get().ordinal();
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& generation = Device::get().generation();
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = generation.max_shared;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = generation.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrClusterLaunch:
      *value = generation.clusters;
      return cudaSuccess;
    default:
      Device::get().fail("device attribute " + std::to_string(int(attribute)) + " is not emulated");
      return cudaErrorInvalidValue;
  }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* host) {
  return guarded([&] {
    const ard::emulator::Kernel& kernel = Device::get().kernel(host);
    *attributes = {};
    attributes->sharedSizeBytes = size_t(kernel.static_shared());
    attributes->maxThreadsPerBlock = kernel.max_threads() ? int(kernel.max_threads()) : 1024;
    attributes->ptxVersion = Device::get().code_arch(host);
    attributes->binaryVersion = Device::get().generation().arch;
  });
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  return guarded([&] {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
      Device::get().allow_shared(host, value);
    } else {
      Device::get().fail("function attribute " + std::to_string(int(attribute)) +
                         " is not emulated");
    }
  });
}

// The text of the error is taken by torch_c10_cuda_check_msg, which follows in every launcher.
cudaError_t cudaGetLastError() { return cudaErrorUnknown; }

}  // extern "C"
