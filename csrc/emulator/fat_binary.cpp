#include "emulator/fat_binary.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace ard::emulator {
namespace {

// Undocumented, but unchanged since CUDA 4: a wrapper that points to a header, and behind the
// header one entry for each piece of code.
struct Wrapper {
  uint32_t magic, version;
  const char* data;
  const void* reserved;
};

struct Header {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;  // of all entries
};

struct Entry {
  uint16_t kind, version;
  uint32_t header_bytes;
  uint64_t bytes;             // of the code behind the header, with padding
  uint32_t compressed_bytes;  // 0: it is not compressed
  uint32_t reserved;
  uint16_t minor, major;  // of the PTX version
  uint32_t arch;
};

constexpr uint32_t kWrapperMagic = 0x466243b1, kHeaderMagic = 0xba55ed50;
constexpr uint16_t kPtx = 1;

template <typename T>
T read(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

std::vector<Ptx> ptx_in_fat_binary(const void* wrapper) {
  const auto outer = read<Wrapper>(static_cast<const char*>(wrapper));
  const auto header = read<Header>(outer.data);
  if (outer.magic != kWrapperMagic || header.magic != kHeaderMagic) {
    throw std::runtime_error("emulator: this is no fat binary of nvcc");
  }
  std::vector<Ptx> found;
  const char* at = outer.data + header.header_bytes;
  for (const char* const end = at + header.bytes; at < end;) {
    const auto entry = read<Entry>(at);
    const char* const code = at + entry.header_bytes;
    if (entry.kind == kPtx) {
      if (entry.compressed_bytes) {
        throw std::runtime_error("emulator: compressed PTX; compile with nvcc --no-compress");
      }
      found.push_back({int(entry.arch), std::string(code, strnlen(code, entry.bytes))});
    }
    at = code + entry.bytes;
  }
  return found;
}

}  // namespace ard::emulator
