// Anonymous shared memory: a memfd without a name, and its mapping.
//
// There is no name at any instant, so a SIGKILL leaves nothing behind, and the size of /dev/shm
// does not bind. The file is sparse: only touched pages cost memory. It is sealed against resizing,
// so that no process can turn another's access into SIGBUS by truncating.
#pragma once

#include <cstddef>
#include <cstdint>

#include <boost/interprocess/mapped_region.hpp>

#include "shm/file_descriptor.h"

namespace stook::shm {

enum class Access { kReadOnly, kReadWrite };

// Creates `bytes` of sparse, sealed shared memory. `label` shows in /proc/<pid>/maps as
// memfd:<label>. Throws Error(kSystem).
FileDescriptor create_shared_memory(const char* label, std::uint64_t bytes);

// One mapping of a whole memfd. Unmaps when destroyed; the descriptor may be closed before.
class Mapping {
 public:
  Mapping() = default;
  // Throws Error(kSystem).
  Mapping(int fd, std::uint64_t bytes, Access access);

  std::byte* data() const noexcept { return static_cast<std::byte*>(region_.get_address()); }
  std::uint64_t size() const noexcept { return region_.get_size(); }
  bool contains(const void* pointer) const noexcept {
    const auto* byte = static_cast<const std::byte*>(pointer);
    return byte >= data() && byte < data() + size();
  }
  // Gives the pages of [offset, offset + bytes) back to the system; they read as zero afterwards.
  // True if the system did. Page-aligned arguments.
  bool punch(std::uint64_t offset, std::uint64_t bytes) const noexcept;

 private:
  boost::interprocess::mapped_region region_;
};

inline constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace stook::shm
