#include "workers/decode/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string>

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
  std::uint64_t promised = 0;
  if (S_ISREG(status.st_mode)) {
    const auto size = static_cast<std::uint64_t>(status.st_size);
    promised = size - std::min(size, part_.offset);
    if (part_.length) promised = std::min(promised, *part_.length);
    if (promised > max_bytes_) {
      ::close(fd);
      return EFBIG;
    }
    // Behind the file's end, and the file is one that has an end.
    at_end_ = promised == 0 && size != 0;
  }
  if (part_.length == 0U) at_end_ = true;
  expected_ = static_cast<std::size_t>(promised);
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

::ssize_t FileReader::read_on(std::size_t count) {
  std::uint8_t* const to = data_.get() + size_;
  if (!part_.length && part_.offset == 0) return ::read(fd_, to, count);
  if (part_.length) count = std::min(count, static_cast<std::size_t>(*part_.length - size_));
  constexpr auto kFurthest = static_cast<std::uint64_t>(std::numeric_limits<::off_t>::max());
  if (part_.offset > kFurthest - size_) return 0;  // no file reaches there
  return ::pread(fd_, to, count, static_cast<::off_t>(part_.offset + size_));
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
    const ::ssize_t got = read_on(capacity_ - size_);
    if (got < 0) return errno;
    size_ += static_cast<std::size_t>(got);
    // A regular file that gave what it promised is not asked again for its end.
    at_end_ = got == 0 || (expected_ != 0 && size_ >= expected_) || size_ == part_.length;
  }
  return 0;
}

Error outside_file(std::uint64_t there, std::uint64_t asked) {
  return {ErrorCode::kOutsideFile, "the file has " + std::to_string(there) + " of these " +
                                       std::to_string(asked) + " bytes; was it cut or replaced?"};
}

}  // namespace stook::decode
