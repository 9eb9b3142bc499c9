// Finds the `__shared__` arrays of the kernels, which the emulator turns into function-local
// statics, so that they can be filled with garbage before each block as on a GPU.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace ard::emu {

/// Address and size of every writable function-local static of namespace ard, but ard::emu, in the
/// executable or shared library that contains this function, from its ELF symbol table. Empty where
/// there is no such table (another object format, or a stripped file): reads of unwritten static
/// shared memory then go unnoticed, nothing else changes.
std::vector<std::pair<unsigned char*, std::size_t>> find_shared_arrays();

}  // namespace ard::emu
