// What every source here is written with.
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

// As the CUDA headers have it, which need not be there: cudaStream_t is CUstream_st*.
struct CUstream_st;

namespace ard::cuda {

using Stream = CUstream_st*;

}  // namespace ard::cuda
