// Runs a piece of a test in a forked child: what kills, limits or forks stays there.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>
#include <utility>

namespace stook {

// The wait status of a child that runs `body` and exits with what it returns (0 to 255). An
// exception that leaves `body` is printed and counts as 200.
template <class Body>
int status_of_child(Body&& body) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    int code = 200;
    try {
      code = std::forward<Body>(body)();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "in the child: %s\n", error.what());
    }
    ::_exit(code);
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

// The exit code, or -1 if a signal ended the child.
template <class Body>
int exit_code_of_child(Body&& body) {
  const int status = status_of_child(std::forward<Body>(body));
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace stook
