#include "workers/decode/bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace stook::decode {
namespace {

// What one system call may read at most: between two, a signal is noticed.
constexpr std::size_t kMaxRead = std::size_t{64} << 20U;

}  // namespace

Error system_error(int number) { return {ErrorCode::kSystem, std::strerror(number), number}; }

Error ends_early(std::uint64_t there, std::uint64_t asked) {
  return {ErrorCode::kEndsEarly, "ends early: " + std::to_string(there) + " of " +
                                     std::to_string(asked) + " bytes are there"};
}

Error MemoryBytes::read(std::uint64_t offset, std::span<std::uint8_t> to, std::size_t* done) {
  const std::uint64_t there = bytes_.size() - std::min<std::uint64_t>(offset, bytes_.size());
  if (to.size() > there) return ends_early(there, to.size());
  if (!to.empty()) std::memcpy(to.data(), bytes_.data() + offset, to.size());
  *done = to.size();
  return {};
}

FileBytes::~FileBytes() {
  if (fd_ >= 0) ::close(fd_);
}

bool FileBytes::has_size(const char* path) {
  struct stat status{};
  if (::stat(path, &status) != 0) return true;
  return S_ISREG(status.st_mode) && status.st_size > 0;
}

Error FileBytes::open(const char* path, const FilePart& part) {
  if (fd_ < 0) fd_ = ::open(path, O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) return system_error(errno);
  struct stat status{};
  if (::fstat(fd_, &status) != 0) return system_error(errno);
  if (!S_ISREG(status.st_mode)) return system_error(ESPIPE);
  const auto all = static_cast<std::uint64_t>(status.st_size);
  begin_ = std::min(part.offset, all);
  size_ = all - begin_;
  if (part.length) {
    if (*part.length > size_) return outside_file(size_, *part.length);
    size_ = *part.length;
  }
  return {};
}

Error FileBytes::read(std::uint64_t offset, std::span<std::uint8_t> to, std::size_t* done) {
  const std::uint64_t there = size_ - std::min(offset, size_);
  if (to.size() > there) return ends_early(there, to.size());
  while (*done < to.size()) {
    const std::size_t count = std::min(to.size() - *done, kMaxRead);
    const auto at = static_cast<::off_t>(begin_ + offset + *done);
    const ::ssize_t got = ::pread(fd_, to.data() + *done, count, at);
    if (got < 0) return system_error(errno);
    if (got == 0) return ends_early(*done, to.size());  // it has become shorter
    *done += static_cast<std::size_t>(got);
  }
  return {};
}

Error PlainStream::read(std::span<std::uint8_t> to, std::size_t* done) {
  Error error = bytes_.read(at_, to, done);
  if (!error) at_ += to.size();
  return error;
}

}  // namespace stook::decode
