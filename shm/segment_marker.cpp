#include "shm/segment_marker.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "shm/error.h"

namespace stook::shm {

std::string path_of(std::string_view name) {
  return std::string(kDirectory).append("/").append(name);
}

bool is_digits(std::string_view text) noexcept {
  return !text.empty() && text.find_first_not_of(kDigits) == std::string_view::npos;
}

std::string_view marker_token(std::string_view name) noexcept {
  if (name.size() != kMarkerLength || name.substr(0, kPrefix.size()) != kPrefix) return {};
  const std::string_view token = name.substr(kPrefix.size());
  return is_digits(token) ? token : std::string_view{};
}

std::string marker_name(std::string_view token) { return std::string(kPrefix).append(token); }

std::string make_token() {
  std::uint64_t random = 0;
  ssize_t got = 0;
  do {
    got = ::getrandom(&random, sizeof(random), 0);
  } while (got < 0 && errno == EINTR);
  if (got != sizeof(random)) throw_system_error("getrandom for the name of a shared segment");
  std::string token;
  for (std::size_t i = 0; i < kTokenLength; ++i, random /= kDigits.size()) {
    token.push_back(kDigits[random % kDigits.size()]);
  }
  return token;
}

bool is_same_file(const struct stat& a, const struct stat& b) noexcept {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

bool is_still_there(int fd, const std::string& path) noexcept {
  struct stat opened{};
  struct stat named{};
  return ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         is_same_file(opened, named);
}

bool lock_shared(int fd, const std::string& path) {
  for (int waited_ms = 0;; ++waited_ms) {
    if (::flock(fd, LOCK_SH | LOCK_NB) == 0) return is_still_there(fd, path);
    if (errno != EWOULDBLOCK && errno != EINTR) throw_system_error("locking " + path);
    if (!is_still_there(fd, path)) return false;
    if (waited_ms == kSweepPatienceMs) {
      throw Error(ErrorCode::kSystem,
                  path + " has been locked by a sweep of leftover segments for " +
                      std::to_string(kSweepPatienceMs / 1000) +
                      " s; find the process with `fuser " + path + "`",
                  EWOULDBLOCK);
    }
    const struct timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

int open_again(const std::string& path, int flags) noexcept {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

std::vector<std::string> read_adopted(int fd) {
  std::vector<std::string> names;
  Slot slot{};
  for (off_t at = 0; ::pread(fd, static_cast<void*>(&slot), sizeof(slot), at) == sizeof(slot);
       at += static_cast<off_t>(sizeof(slot))) {
    if (slot.used.load(std::memory_order_relaxed) != 1) continue;
    const std::string_view name(slot.name, ::strnlen(slot.name, sizeof(slot.name)));
    // The file is our user's, but what it says decides what is deleted.
    if (name.empty() || name.size() > kAdoptMost || name.find('/') != std::string_view::npos ||
        name == "." || name == ".." || !marker_token(name).empty()) {
      continue;
    }
    names.emplace_back(name);
  }
  return names;
}

}  // namespace stook::shm
