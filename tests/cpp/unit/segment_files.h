// What lies in /dev/shm, as tests of named segments look at it; and children that live for as long
// as a test wants.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>

#include "shm/error.h"
#include "shm/segment_owner.h"

namespace stook {

// Gives this process a /dev/shm of its own, so that other programs' segments and sweeps do not
// disturb. False where the system does not permit that.
inline bool has_private_shared_memory() {
  static const bool done = ::unshare(CLONE_NEWNS) == 0 &&
                           ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                           ::mount("tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777") == 0;
  return done;
}

// A sweep that removes just so many segments. How many can be told only in a private /dev/shm.
inline bool sweeps(std::uint64_t count) {
  const std::uint64_t swept = shm::sweep_leftover_segments();
  if (swept == count || !has_private_shared_memory()) return true;
  std::fprintf(stderr, "%llu segments were swept\n", static_cast<unsigned long long>(swept));
  return false;
}

// UndefinedBehaviorSanitizer opens a pipe when it first sees an object of a class with a vtable: an
// error must have been seen before a test takes all descriptors away.
inline void see_an_error() {
  try {
    throw shm::Error(shm::ErrorCode::kBroken, "");
  } catch (const shm::Error& error) {
    if (error.code() != shm::ErrorCode::kBroken) throw;
  }
}

inline bool segment_exists(const std::string& name) {
  return ::access(("/dev/shm/" + name).c_str(), F_OK) == 0;
}

// Every file of ours, markers too.
inline std::set<std::string> segment_files() {
  std::set<std::string> names;
  DIR* directory = ::opendir("/dev/shm");
  if (directory == nullptr) throw std::runtime_error("opendir");
  while (const dirent* entry = ::readdir(directory)) {
    const std::string name = entry->d_name;
    if (name.rfind("stook_", 0) == 0) names.insert(name);
  }
  ::closedir(directory);
  return names;
}

// Those of them that begin with the marker of a segment's owner: it and all its segments.
inline std::set<std::string> files_of_owner(const std::string& segment) {
  const std::string marker = segment.substr(0, segment.rfind('_'));
  std::set<std::string> names;
  for (const std::string& name : segment_files()) {
    if (name.rfind(marker, 0) == 0) names.insert(name);
  }
  return names;
}

inline std::string marker_of(const std::string& segment) {
  return segment.substr(0, segment.rfind('_'));
}

inline void make_file(const std::string& name, std::size_t bytes) {
  const int fd = ::open(("/dev/shm/" + name).c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);
  if (fd < 0) throw std::runtime_error("cannot make " + name);
  const bool done = ::ftruncate(fd, static_cast<off_t>(bytes)) == 0;
  ::close(fd);
  if (!done) throw std::runtime_error("ftruncate of " + name);
}

// A child that says one line when it is ready, and then does what it is told: to go on, or to die.
class Child {
 public:
  // `body` gets two functions: say(line), and wait() until go_on() is called.
  using Say = std::function<void(const std::string&)>;
  using Wait = std::function<void()>;
  explicit Child(const std::function<int(const Say&, const Wait&)>& body) {
    int up[2];
    int down[2];
    if (::pipe2(up, O_CLOEXEC) != 0 || ::pipe2(down, O_CLOEXEC) != 0) {
      throw std::runtime_error("pipe");
    }
    pid_ = ::fork();
    if (pid_ == 0) {
      ::close(up[0]);
      ::close(down[1]);
      int code = 200;
      try {
        code = body(
            [&](const std::string& line) {
              const std::string text = line + "\n";
              if (::write(up[1], text.data(), text.size()) < 0) ::_exit(201);
            },
            [&] {
              char byte = 0;
              if (::read(down[0], &byte, 1) <= 0) ::_exit(202);  // the test is gone
            });
      } catch (const std::exception& error) {
        std::fprintf(stderr, "in the child: %s\n", error.what());
      }
      ::_exit(code);
    }
    ::close(up[1]);
    ::close(down[0]);
    from_ = up[0];
    to_ = down[1];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    if (pid_ > 0) kill();
    ::close(from_);
    ::close(to_);
  }

  pid_t pid() const { return pid_; }
  // The next line it says; empty if it has ended.
  std::string hear() {
    std::string line;
    for (char c = 0; ::read(from_, &c, 1) == 1 && c != '\n';) line.push_back(c);
    return line;
  }
  void go_on() {
    if (::write(to_, "x", 1) != 1) throw std::runtime_error("the child is gone");
  }
  void kill() {
    ::kill(pid_, SIGKILL);
    wait();
  }
  // Its exit code, or -1 if a signal ended it.
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  int from_ = -1;
  int to_ = -1;
};

}  // namespace stook
