// Sweeping: what killed processes have left is found by its lock, and removed.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "shm/file_descriptor.h"
#include "shm/segment_marker.h"
#include "shm/segment_owner.h"

namespace stook::shm {

namespace {

// A marker that nobody uses, locked exclusively by the sweep.
struct Leftover {
  std::string token;
  FileDescriptor marker;
};

// The marker of `token`, if it is this user's and nobody holds it.
bool take_leftover(std::string_view token, std::vector<Leftover>& taken) {
  const std::string path = path_of(marker_name(token));
  FileDescriptor fd(open_again(path, O_RDONLY));
  struct stat status{};
  if (!fd.is_open() || ::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode) ||
      status.st_uid != ::geteuid()) {
    return false;
  }
  taken.reserve(taken.size() + 1);
  std::string copy(token);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) return false;
  if (!is_still_there(fd.get(), path)) return false;  // another sweep has done it
  taken.push_back({std::move(copy), std::move(fd)});
  return true;
}

struct DirectoryCloser {
  void operator()(DIR* directory) const noexcept { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, DirectoryCloser>;

Directory open_directory() {
  FileDescriptor fd(::open(kDirectory, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  Directory directory(fd.is_open() ? ::fdopendir(fd.get()) : nullptr);
  if (directory != nullptr) fd.release();
  return directory;
}

// Removes a file of this user. True if it is gone; counts it if it was there.
bool remove_file(int directory, const char* name, std::uint64_t& removed) noexcept {
  struct stat status{};
  if (::fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) != 0) return errno == ENOENT;
  // Another user's: not ours to remove, and no reason to come again.
  if (!S_ISREG(status.st_mode) || status.st_uid != ::geteuid()) return true;
  if (::unlinkat(directory, name, 0) != 0) return errno == ENOENT;
  ++removed;
  return true;
}

// Removes what `leftovers` name. The marker goes last: if the sweeper is killed, or something
// cannot be removed, the next sweep goes on.
std::uint64_t remove_leftovers(std::vector<Leftover>& leftovers) {
  std::uint64_t removed = 0;
  // Read after the locks were taken: from then on no process makes segments of these tokens.
  const Directory directory = open_directory();
  if (directory == nullptr) return removed;
  const int fd = ::dirfd(directory.get());
  std::vector<std::pair<std::string, Leftover*>> files;
  for (errno = 0; const dirent* entry = ::readdir(directory.get()); errno = 0) {
    const std::string_view token = segment_token(entry->d_name);
    if (token.empty()) continue;
    for (Leftover& leftover : leftovers) {
      if (leftover.token == token) files.emplace_back(entry->d_name, &leftover);
    }
  }
  if (errno != 0) return removed;
  for (Leftover& leftover : leftovers) {
    for (std::string& name : read_adopted(leftover.marker.get())) {
      files.emplace_back(std::move(name), &leftover);
    }
  }
  for (const auto& [name, leftover] : files) {
    if (!remove_file(fd, name.c_str(), removed)) leftover->token.clear();  // keep its marker
  }
  for (Leftover& leftover : leftovers) {
    if (leftover.token.empty()) continue;
    ::unlinkat(fd, marker_name(leftover.token).c_str(), 0);
  }
  return removed;
}

void unlock(std::vector<Leftover>& leftovers) noexcept {
  // Not by closing alone: a child forked meanwhile would hold the locks on.
  for (Leftover& leftover : leftovers) ::flock(leftover.marker.get(), LOCK_UN);
  leftovers.clear();
}

}  // namespace

std::uint64_t sweep_owners(const std::vector<std::string>& tokens) noexcept {
  std::uint64_t removed = 0;
  std::vector<Leftover> leftovers;
  try {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      take_leftover(tokens[i], leftovers);
      if (leftovers.size() == kSweepAtOnce || (i + 1 == tokens.size() && !leftovers.empty())) {
        removed += remove_leftovers(leftovers);
        unlock(leftovers);
      }
    }
  } catch (const std::bad_alloc&) {
    // The next sweep does it.
  }
  unlock(leftovers);
  return removed;
}

std::uint64_t sweep_leftover_segments() noexcept {
  try {
    std::vector<std::string> tokens;
    if (const Directory directory = open_directory()) {
      while (const dirent* entry = ::readdir(directory.get())) {
        const std::string_view token = marker_token(entry->d_name);
        if (!token.empty()) tokens.emplace_back(token);
      }
    }
    return sweep_owners(tokens);
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

}  // namespace stook::shm
