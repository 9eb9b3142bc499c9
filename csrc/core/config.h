// Compiler switches shared by everything below core/. The headers of core/ are compiled by the host
// compiler, by nvcc and by the host emulator, and use no torch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// ARD_HD: callable from host and device, always inlined, so that the body is compiled for the
// instruction set of the caller (a CPU kernel's clones) and vectorises inside the caller's loop.
#if defined(__CUDACC__)
#define ARD_HD __host__ __device__ __forceinline__
#else
#define ARD_HD inline __attribute__((always_inline))
#endif
