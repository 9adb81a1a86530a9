#include "workers/process.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

namespace stook::workers {

shm::FileDescriptor open_pidfd(pid_t pid) {
  return shm::FileDescriptor(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

void kill_by_pidfd(int pidfd, int signal) noexcept {
  ::syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0);
}

bool wait_for_end(int pidfd, int timeout_ms) {
  pollfd entry{pidfd, POLLIN, 0};
  timespec start{};
  ::clock_gettime(CLOCK_MONOTONIC, &start);
  for (;;) {
    int left = timeout_ms;
    if (timeout_ms > 0) {
      timespec now{};
      ::clock_gettime(CLOCK_MONOTONIC, &now);
      const long passed =
          (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000;
      left = passed >= timeout_ms ? 0 : timeout_ms - static_cast<int>(passed);
    }
    const int ready = ::poll(&entry, 1, left);
    if (ready > 0) return true;
    if (ready == 0) return false;
    if (errno != EINTR) return false;
  }
}

}  // namespace stook::workers
