// What a piece of shared memory costs, as the kernel counts it.
#pragma once

#include <sys/mman.h>
#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "shm/shared_memory.h"

namespace stook {

// Bytes of pages that a memfd holds.
inline std::uint64_t backed_bytes(int fd) {
  struct stat status{};
  if (::fstat(fd, &status) != 0) throw std::runtime_error("fstat");
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

// Pages of [offset, offset + bytes) that the file behind a shared mapping holds.
inline std::uint64_t backed_pages(const shm::Mapping& memory, std::uint64_t offset,
                                  std::uint64_t bytes) {
  std::vector<unsigned char> pages(bytes / shm::kPageBytes);
  if (::mincore(memory.data() + offset, bytes, pages.data()) != 0) {
    throw std::runtime_error("mincore");
  }
  std::uint64_t count = 0;
  for (const unsigned char page : pages) count += page & 1U;
  return count;
}

inline bool all_bytes_are(const std::byte* data, std::uint64_t bytes, unsigned char value) {
  return bytes == 0 || (data[0] == std::byte{value} && std::memcmp(data, data + 1, bytes - 1) == 0);
}

inline void fill_bytes(std::byte* data, std::uint64_t bytes, unsigned char value) {
  std::memset(data, value, bytes);
}

}  // namespace stook
