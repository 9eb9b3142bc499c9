#include "testing/shared_arrays.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#endif

namespace ard::emu {

#if defined(__linux__)

std::vector<std::pair<unsigned char*, std::size_t>> find_shared_arrays() {
  std::vector<std::pair<unsigned char*, std::size_t>> arrays;
  Dl_info module;
  if (!dladdr(reinterpret_cast<void*>(&find_shared_arrays), &module)) return arrays;
  // dladdr may give the name on the command line for the executable; prefer what the kernel says.
  const std::string path = std::strchr(module.dli_fname, '/') ? module.dli_fname : "/proc/self/exe";
  std::ifstream stream(path, std::ios::binary);
  const std::string file{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (file.size() < sizeof(ElfW(Ehdr)) || file.compare(0, SELFMAG, ELFMAG) != 0) return arrays;

  const auto read = [&](std::size_t offset, auto* out) {
    if (offset + sizeof(*out) > file.size()) return false;
    std::memcpy(out, file.data() + offset, sizeof(*out));
    return true;
  };
  ElfW(Ehdr) header;
  read(0, &header);
  const auto section = [&](std::size_t index) {
    ElfW(Shdr) out{};
    read(header.e_shoff + index * header.e_shentsize, &out);
    return out;
  };
  auto* base = header.e_type == ET_DYN ? static_cast<unsigned char*>(module.dli_fbase) : nullptr;
  for (std::size_t i = 0; i < header.e_shnum; ++i) {
    const ElfW(Shdr) table = section(i);
    if (table.sh_type != SHT_SYMTAB) continue;
    const ElfW(Shdr) strings = section(table.sh_link);
    for (std::size_t at = 0; at + sizeof(ElfW(Sym)) <= table.sh_size; at += table.sh_entsize) {
      ElfW(Sym) symbol;
      if (!read(table.sh_offset + at, &symbol)) break;
      if ((symbol.st_info & 0xf) != STT_OBJECT || symbol.st_shndx >= header.e_shnum) continue;
      // Itanium C++ ABI: _ZZ is "a local entity of a function", N3ard... the enclosing namespace.
      const char* name = file.data() + strings.sh_offset + symbol.st_name;
      if (std::strncmp(name, "_ZZN3ard", 8) != 0 || std::strncmp(name + 8, "3emu", 4) == 0)
        continue;
      if (!(section(symbol.st_shndx).sh_flags & SHF_WRITE)) continue;
      arrays.emplace_back(base + symbol.st_value, static_cast<std::size_t>(symbol.st_size));
    }
  }
  return arrays;
}

#else

std::vector<std::pair<unsigned char*, std::size_t>> find_shared_arrays() { return {}; }

#endif

}  // namespace ard::emu
