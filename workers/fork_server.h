// The fork server: one thread that forks workers from one prepared state, reaps them, and ends with
// its parent.
//
// It is the process whose death ends every worker (PR_SET_PDEATHSIG: it has a single thread, so the
// thread that forked is the process), and it watches the parent by pidfd, so that a killed parent
// leaves nothing.
#pragma once

#include <sys/types.h>

#include "workers/worker.h"

namespace stook::workers {

// What the host language needs around a fork; implemented by the binding layer.
class ForkHost {
 public:
  virtual ~ForkHost() = default;
  virtual void before_fork() = 0;
  virtual void after_fork_in_server() = 0;
  // In the new process, whose surroundings (group, signals, stdin) are set. Never returns.
  [[noreturn]] virtual void run_worker(WorkerBirth birth) = 0;
  // A signal interrupted the server's wait.
  virtual void on_interrupt() = 0;
};

// Serves until the socket's other end is closed or `parent` is dead; then every worker and what it
// started is killed and reaped. `socket` stays the caller's.
void serve_forks(int socket, pid_t parent, ForkHost& host);

}  // namespace stook::workers
