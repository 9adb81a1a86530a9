// The one error type of the C++ side: what the system refused, on what, and what to do about it.
//
// Thrown by construction and set-up only. Expected outcomes (a full ring, an exhausted arena, a
// dead worker) are return values. The binding layer translates codes to Python exceptions in one
// table.
#pragma once

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace stook::shm {

enum class ErrorCode {
  kSystem,           // a system call failed: `system_errno` says how
  kNoSharedMemory,   // shared memory cannot hold what was asked for
  kInvalidArgument,  // the caller's value is out of range
  kBroken,           // the other side is gone or sent what it must not
  kForked,           // used in a forked child of the process that made it
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string message, int system_errno = 0)
      : std::runtime_error(std::move(message)), code_(code), system_errno_(system_errno) {}

  ErrorCode code() const noexcept { return code_; }
  int system_errno() const noexcept { return system_errno_; }

 private:
  ErrorCode code_;
  int system_errno_;
};

// Throws for a failed system call `what`, with errno as it is now.
[[noreturn]] inline void throw_system_error(const std::string& what) {
  const int error = errno;
  throw Error(ErrorCode::kSystem, what + ": " + std::strerror(error), error);
}

}  // namespace stook::shm
