// What the kernels need of the platform: nothing under nvcc and NVRTC, a shim under the host
// emulator (which includes its own header first and defines ARD_CUDA_ON_HOST), and for the
// launchers without nvcc as much as a kernel's declaration takes.
#pragma once

#include "core/config.h"

#if defined(ARD_KERNELS_BY_NAME)
#define __global__
#elif !defined(ARD_CUDA_ON_HOST)
// Dynamic shared memory of a block as an array of T.
#define ARD_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char ard_shared[]; \
  T* name = reinterpret_cast<T*>(ard_shared)
#endif
