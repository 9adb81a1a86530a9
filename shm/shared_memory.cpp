#include "shm/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <boost/interprocess/exceptions.hpp>
#include <string>

#include "shm/error.h"

namespace stook::shm {

namespace bip = boost::interprocess;

FileDescriptor create_shared_memory(const char* label, std::uint64_t bytes) {
  FileDescriptor fd(::memfd_create(label, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.is_open()) throw_system_error(std::string("memfd_create(") + label + ")");
  // The inode's mode is 0777; it can be reached through /proc/<pid>/fd.
  if (::fchmod(fd.get(), 0600) != 0) throw_system_error("fchmod of shared memory");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
    throw_system_error("reserving " + std::to_string(bytes) + " bytes of shared memory");
  }
  // Not F_SEAL_FUTURE_WRITE: it forbids punching holes.
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    throw_system_error("sealing shared memory");
  }
  return fd;
}

namespace {
// What Boost.Interprocess asks of something that can be mapped.
struct Mappable {
  bip::mapping_handle_t get_mapping_handle() const {
    return bip::ipcdetail::mapping_handle_from_file_handle(fd);
  }
  int fd;
};
}  // namespace

Mapping::Mapping(int fd, std::uint64_t bytes, Access access) {
  const Mappable mappable{fd};
  const bip::mode_t mode = access == Access::kReadOnly ? bip::read_only : bip::read_write;
  try {
    region_ = bip::mapped_region(mappable, mode, 0, static_cast<std::size_t>(bytes), nullptr,
                                 MAP_SHARED | MAP_NORESERVE);
  } catch (const bip::interprocess_exception& error) {
    errno = error.get_native_error();
    throw_system_error("mapping " + std::to_string(bytes) + " bytes of shared memory");
  }
}

bool Mapping::punch(std::uint64_t offset, std::uint64_t bytes) const noexcept {
  return bytes == 0 || ::madvise(data() + offset, bytes, MADV_REMOVE) == 0;
}

}  // namespace stook::shm
