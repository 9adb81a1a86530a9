#include "workers/fork_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "workers/process.h"
#include "workers/socket.h"

namespace stook::workers {

namespace {

struct Child {
  std::uint32_t worker;
  std::uint32_t incarnation;
  pid_t pid;
  shm::FileDescriptor pidfd;
};

class Server {
 public:
  Server(int socket, pid_t parent, ForkHost& host)
      : socket_(socket), parent_pid_(parent), host_(host), parent_(open_pidfd(parent)) {}

  void serve() {
    // A parent that died before the pidfd was opened has left us to another one.
    while (parent_.is_open() && ::getppid() == parent_pid_) {
      std::vector<pollfd> entries;
      entries.push_back({socket_, POLLIN, 0});
      entries.push_back({parent_.get(), POLLIN, 0});
      for (const Child& child : children_) entries.push_back({child.pidfd.get(), POLLIN, 0});
      if (::poll(entries.data(), entries.size(), -1) < 0) {
        if (errno != EINTR) break;
        host_.on_interrupt();
        continue;
      }
      if (entries[1].revents != 0) break;
      // Exits before requests, so that the parent hears of a death before its successor's birth.
      for (std::size_t i = children_.size(); i-- > 0;) {
        if (entries[i + 2].revents != 0) reap(i);
      }
      if (entries[0].revents != 0 && !handle_request()) break;
    }
    end_all();
  }

 private:
  bool handle_request() {
    Received received{};
    switch (receive_message(socket_, received, false)) {
      case ReceiveState::kClosed:
        return false;
      case ReceiveState::kNothing:
        return true;
      case ReceiveState::kMessage:
        break;
    }
    if (received.message.type == MessageType::kStart && received.fds.size() == 3) {
      common_ = std::move(received.fds);
    } else if (received.message.type == MessageType::kSpawn && received.fds.size() == 2 &&
               common_.size() == 3) {
      return spawn(received);
    } else {
      return false;  // not this version's parent
    }
    return true;
  }

  bool spawn(Received& request) {
    const pid_t server = ::getpid();
    host_.before_fork();
    const pid_t pid = ::fork();
    if (pid == 0) {
      become_worker(server);
      WorkerBirth birth;
      birth.index = request.message.worker;
      birth.incarnation = request.message.incarnation;
      birth.control = std::move(common_[0]);
      birth.arguments = std::move(common_[1]);
      birth.parent_bell = std::move(common_[2]);
      birth.arena = std::move(request.fds[0]);
      birth.own_bell = std::move(request.fds[1]);
      host_.run_worker(std::move(birth));
    }
    const int fork_errno = errno;
    host_.after_fork_in_server();
    Message reply{
        MessageType::kSpawned, request.message.worker, request.message.incarnation, pid, 0, 0};
    if (pid < 0) {
      reply.type = MessageType::kFailed;
      reply.status = fork_errno;
      return send_message(socket_, reply);
    }
    // Both sides set the group, whichever comes first: it must exist before anyone kills it.
    ::setpgid(pid, pid);
    // Opened before the child can be reaped, so it cannot be another process's.
    shm::FileDescriptor pidfd = open_pidfd(pid);
    const int fd = pidfd.get();
    if (!pidfd.is_open()) {
      reply.type = MessageType::kFailed;
      reply.status = errno;
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
      return send_message(socket_, reply);
    }
    children_.push_back(
        {request.message.worker, request.message.incarnation, pid, std::move(pidfd)});
    return send_message(socket_, reply, {&fd, 1});
  }

  void become_worker(pid_t server) {
    ::setpgid(0, 0);  // a terminal's Ctrl-C reaches the parent alone
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != server) ::_exit(1);  // it died before the line above
    children_.clear();
    parent_.reset();
    ::close(socket_);
    const int null = ::open("/dev/null", O_RDONLY);
    if (null >= 0 && null != 0) {
      ::dup2(null, 0);
      ::close(null);
    }
    for (const int signal : {SIGINT, SIGTERM, SIGCHLD, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM}) {
      ::signal(signal, SIG_DFL);
    }
    ::signal(SIGPIPE, SIG_IGN);  // as Python has it
    ::signal(SIGXFSZ, SIG_IGN);
    sigset_t none;
    sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    // When memory runs out, a worker can be replaced; the trainer cannot.
    if (std::FILE* file = std::fopen("/proc/self/oom_score_adj", "we")) {
      std::fputs("300", file);
      std::fclose(file);
    }
  }

  void reap(std::size_t i) {
    Child child = std::move(children_[i]);
    children_.erase(children_.begin() + static_cast<std::ptrdiff_t>(i));
    // What the worker started, too. Before reaping: until then the group's number is its own.
    ::kill(-child.pid, SIGKILL);
    int status = 0;
    while (::waitpid(child.pid, &status, 0) < 0 && errno == EINTR) {
    }
    send_message(socket_,
                 {MessageType::kExited, child.worker, child.incarnation, child.pid, status, 0});
  }

  void end_all() {
    for (const Child& child : children_) {
      ::kill(-child.pid, SIGKILL);
      kill_by_pidfd(child.pidfd.get(), SIGKILL);
    }
    for (const Child& child : children_) {
      while (::waitpid(child.pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    children_.clear();
  }

  int socket_;
  pid_t parent_pid_;
  ForkHost& host_;
  shm::FileDescriptor parent_;
  std::vector<shm::FileDescriptor> common_;  // control, arguments, parent's doorbell
  std::vector<Child> children_;
};

}  // namespace

void serve_forks(int socket, pid_t parent, ForkHost& host) { Server(socket, parent, host).serve(); }

}  // namespace stook::workers
