// What the kernels need of the platform: dynamic shared memory under nvcc; the host emulator brings
// its own (it includes its own header first and defines ARD_CUDA_ON_HOST).
#pragma once

#include "core/config.h"

#if !defined(ARD_CUDA_ON_HOST)
// Dynamic shared memory of a block as an array of T.
#define ARD_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char ard_shared[]; \
  T* name = reinterpret_cast<T*>(ard_shared)
#endif
