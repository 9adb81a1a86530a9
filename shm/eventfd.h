// The pollable half of a doorbell (shm/doorbell.h): an eventfd.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>

#include "shm/error.h"
#include "shm/file_descriptor.h"

namespace stook::shm {

enum class EventWait { kBlocking, kNonBlocking };

inline FileDescriptor create_eventfd(EventWait wait) {
  FileDescriptor fd(
      ::eventfd(0, EFD_CLOEXEC | (wait == EventWait::kNonBlocking ? EFD_NONBLOCK : 0)));
  if (!fd.is_open()) throw_system_error("eventfd");
  return fd;
}

// Never fails where it matters: a full counter means that the sleeper is being woken already.
inline void ring_eventfd(int fd) noexcept {
  const std::uint64_t one = 1;
  while (::write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

}  // namespace stook::shm
