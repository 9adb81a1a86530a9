#include "workers/decode/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace stook::decode {
namespace {

constexpr std::size_t kFirstChunk = std::size_t{64} << 10U;

}  // namespace

FileReader::~FileReader() {
  if (fd_ >= 0) ::close(fd_);
}

int FileReader::open(const char* path) {
  const int fd = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno;
  struct stat status{};
  if (::fstat(fd, &status) != 0) {
    const int error = errno;
    ::close(fd);
    return error;
  }
  if (S_ISREG(status.st_mode)) {
    expected_ = static_cast<std::size_t>(status.st_size);
    if (expected_ > max_bytes_) {
      ::close(fd);
      return EFBIG;
    }
  }
  fd_ = fd;
  return 0;
}

int FileReader::reserve(std::size_t capacity) {
  void* const moved = std::realloc(data_.get(), capacity);
  if (moved == nullptr) return ENOMEM;
  static_cast<void>(data_.release());
  data_.reset(static_cast<std::uint8_t*>(moved));
  capacity_ = capacity;
  return 0;
}

int FileReader::read(const char* path, std::size_t want) {
  if (fd_ < 0) {
    if (const int error = open(path); error != 0) return error;
  }
  while (!at_end_ && size_ < want) {
    if (size_ >= max_bytes_) return EFBIG;
    if (size_ == capacity_) {
      const std::size_t grown = std::max(kFirstChunk, capacity_ * 2);
      const std::size_t sensible = expected_ > size_ ? expected_ : grown;
      if (const int error = reserve(std::min({sensible, want, max_bytes_})); error != 0)
        return error;
    }
    const ::ssize_t got = ::read(fd_, data_.get() + size_, capacity_ - size_);
    if (got < 0) return errno;
    size_ += static_cast<std::size_t>(got);
    // A regular file that gave what it promised is not asked again for its end.
    at_end_ = got == 0 || (expected_ != 0 && size_ >= expected_);
  }
  return 0;
}

}  // namespace stook::decode
