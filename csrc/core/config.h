// Compiler switches shared by everything below core/. The headers of core/ are compiled by the host
// compiler, by nvcc, by NVRTC and by the host emulator, so they use no torch and, under NVRTC, no
// std.
#pragma once

#if defined(__CUDACC_RTC__)
using int32_t = int;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;
// The bits that the host's <cmath> gives.
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fc00000)
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

// ARD_HD: callable from host and device, always inlined, so that the body is compiled for the
// instruction set of the caller (a CPU kernel's clones) and vectorises inside the caller's loop.
#if defined(__CUDACC__)
#define ARD_HD __host__ __device__ __forceinline__
#else
#define ARD_HD inline __attribute__((always_inline))
#endif
