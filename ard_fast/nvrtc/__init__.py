"""CUDA kernels without nvcc: compiled on the user's machine by NVRTC, at first use, from the sources in the package.

The launchers, checks and plans are those of the module `_C_cuda`; they are in the module `_C_rtc`, which the C++
compiler alone builds, and which starts kernels by name. Here is what turns a name into machine code: `toolchain` finds
NVRTC, `program` writes what it compiles, `store` keeps the results on disk, `kernels` answers `_C_rtc`.
"""
