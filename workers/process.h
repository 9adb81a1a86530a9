// Small tools for processes: pidfds, signals of a fresh process.
#pragma once

#include <sys/types.h>

#include "shm/file_descriptor.h"

namespace stook::workers {

// A descriptor that becomes readable when `pid` ends. Not open (errno says why) if there is no such
// process.
shm::FileDescriptor open_pidfd(pid_t pid);
void kill_by_pidfd(int pidfd, int signal) noexcept;
// True once the process behind `pidfd` has ended; waits up to `timeout_ms` (-1: for ever).
bool wait_for_end(int pidfd, int timeout_ms);

}  // namespace stook::workers
