// The PTX in the fat binaries that nvcc puts into an object file.
#pragma once

#include <string>
#include <vector>

namespace ard::emulator {

struct Ptx {
  int arch;  // 90 for compute_90
  std::string text;
};

// All PTX that a fat binary holds. `wrapper`: what __cudaRegisterFatBinary gets. Machine code is
// passed over; compressed PTX is an error (nvcc --no-compress).
std::vector<Ptx> ptx_in_fat_binary(const void* wrapper);

}  // namespace ard::emulator
