#include "shm/segment_owner.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "shm/file_descriptor.h"
#include "shm/fork_guard.h"

namespace stook::shm {

namespace {

constexpr const char* kDirectory = "/dev/shm";
constexpr std::string_view kPrefix = "stook_";
constexpr std::string_view kDigits = "0123456789abcdefghijklmnopqrstuvwxyz";
constexpr std::size_t kTokenLength = 13;  // 64 random bits
constexpr std::size_t kMarkerLength = kPrefix.size() + kTokenLength;
constexpr std::size_t kNameMost = 30;     // of a segment of ours
constexpr std::size_t kAdoptMost = 250;   // of any segment
constexpr std::size_t kSweepAtOnce = 32;  // markers that are held open together
// How long a sweep of one owner may keep others waiting, before that is an error.
constexpr int kSweepPatienceMs = 10'000;

std::string path_of(std::string_view name) {
  return std::string(kDirectory).append("/").append(name);
}

bool is_digits(std::string_view text) noexcept {
  return !text.empty() && text.find_first_not_of(kDigits) == std::string_view::npos;
}

// The token of a marker's name, or nothing.
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

// Whether `path` still leads to what `fd` has open.
bool is_still_there(int fd, const std::string& path) noexcept {
  struct stat opened{};
  struct stat named{};
  return ::fstat(fd, &opened) == 0 && ::lstat(path.c_str(), &named) == 0 &&
         is_same_file(opened, named);
}

// A shared lock on the marker `fd`, whose path is `path`. False if a sweep has removed it. Waits
// for a sweep to end, but asks again and again instead of sleeping in flock: a child that was
// forked during a sweep can hold on the lock of a marker which is gone.
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

// ------------------------------------------------------------------ the adoption list

// An entry of the list in a marker file: the names that go when the marker's process goes. Written
// by that process with mutex_ held, read by the sweeper after its death.
struct Slot {
  // Stored after the name (release): a kill between the two leaves an empty slot, not half a name.
  std::atomic<std::uint32_t> used;
  char name[252];
};
static_assert(sizeof(Slot) == 256 && std::is_standard_layout_v<Slot>);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(Slot::name) > kAdoptMost);

constexpr std::uint64_t kFirstListBytes = 4096;
constexpr std::uint64_t kListStep = 65536;

// The list as its process sees it. Grows with what is adopted at a time; never shrinks.
class AdoptionList {
 public:
  AdoptionList() = default;
  AdoptionList(const AdoptionList&) = delete;
  AdoptionList& operator=(const AdoptionList&) = delete;
  ~AdoptionList() { clear(); }

  // Throws Error(kSystem, kNoSharedMemory), std::bad_alloc.
  std::uint32_t add(int marker, std::string_view name) {
    if (spare_.empty()) grow(marker);
    const std::uint32_t index = spare_.back();
    spare_.pop_back();
    Slot& slot = slots_[index];
    std::memcpy(slot.name, name.data(), name.size());
    slot.name[name.size()] = '\0';
    // SYNC(segment_owner.list): read by sweepers once this process has lost its lock.
    slot.used.store(1, std::memory_order_release);
    return index;
  }

  void remove(std::uint32_t index) noexcept {
    slots_[index].used.store(0, std::memory_order_release);
    spare_.push_back(index);  // grow() made the room
  }

  void clear() noexcept {
    if (slots_ != nullptr) ::munmap(slots_, bytes_);
    slots_ = nullptr;
    bytes_ = 0;
    spare_.clear();
  }

 private:
  void grow(int marker) {
    const std::uint64_t step =
        bytes_ == 0 ? kFirstListBytes : std::min<std::uint64_t>(bytes_, kListStep);
    const std::uint64_t bytes = bytes_ + step;
    spare_.reserve(bytes / sizeof(Slot));
    // Reserved and not only mapped: a full /dev/shm is to be an error here and no SIGBUS.
    int error = 0;
    do {
      error = ::posix_fallocate(marker, static_cast<off_t>(bytes_), static_cast<off_t>(step));
    } while (error == EINTR);
    if (error != 0) {
      throw Error(error == ENOSPC ? ErrorCode::kNoSharedMemory : ErrorCode::kSystem,
                  std::string("listing a segment to be unlinked needs ") + std::to_string(step) +
                      " bytes in " + kDirectory + ": " + std::strerror(error),
                  error);
    }
    void* memory = slots_ == nullptr
                       ? ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, marker, 0)
                       : ::mremap(slots_, bytes_, bytes, MREMAP_MAYMOVE);
    if (memory == MAP_FAILED) throw_system_error("mapping the list of segments to be unlinked");
    slots_ = static_cast<Slot*>(memory);
    for (std::uint64_t i = bytes / sizeof(Slot); i-- > bytes_ / sizeof(Slot);) {
      spare_.push_back(static_cast<std::uint32_t>(i));
    }
    bytes_ = bytes;
  }

  Slot* slots_ = nullptr;
  std::uint64_t bytes_ = 0;
  std::vector<std::uint32_t> spare_;  // unused slots, the lowest last; has room for all
};

// What the marker `fd` of a process that is gone lists. Read, not mapped: no SIGBUS.
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

// ------------------------------------------------------------------ sweeping

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

// ------------------------------------------------------------------ this process

// A foreign owner whose marker this process holds.
struct Held {
  std::string token;
  FileDescriptor marker;
  std::uint64_t count = 0;
  std::uint64_t forks = 0;  // when it was opened
};

struct Adopted {
  std::uint32_t slot = 0;
  std::uint64_t count = 0;
};

// Found by a string_view too, so that looking up allocates nothing.
struct NameHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view name) const noexcept {
    return std::hash<std::string_view>{}(name);
  }
};
template <class Value>
using NameMap = std::unordered_map<std::string, Value, NameHash, std::equal_to<>>;

// Everything with the mutex held.
struct Owner {
  std::mutex mutex;
  std::string token;  // empty: not an owner (any more)
  FileDescriptor marker;
  std::uint64_t next_number = 0;
  AdoptionList list;
  NameMap<Adopted> adopted;
  NameMap<std::unique_ptr<Held>> held;
};

// Made at the first need, never destroyed. Written by whoever makes it (release) and in a forked
// child, read by everybody (acquire). The child leaks the parent's, descriptors included: a mutex
// may be locked by a thread that the child does not have, and what the parent uses the child may
// use too.
std::atomic<Owner*> current{nullptr};

void forget_in_child() { current.store(nullptr, std::memory_order_relaxed); }

// How often this process began to fork: a descriptor opened since then is in no child.
std::atomic<std::uint64_t> forks{0};

void count_fork() { forks.fetch_add(1, std::memory_order_seq_cst); }

// Registered when the library is loaded, so that no fork goes unnoticed.
const int registered = ::pthread_atfork(count_fork, nullptr, forget_in_child);

Owner& make_current() {
  (void)registered;
  Owner* owner = current.load(std::memory_order_acquire);
  if (owner != nullptr) return *owner;
  auto fresh = std::make_unique<Owner>();
  if (current.compare_exchange_strong(owner, fresh.get(), std::memory_order_acq_rel)) {
    return *fresh.release();
  }
  return *owner;
}

// With the mutex held.
void become_owner(Owner& owner) {
  while (owner.token.empty()) {
    std::string token = make_token();
    const std::string path = path_of(marker_name(token));
    FileDescriptor fd(open_again(path, O_RDWR | O_CREAT | O_EXCL));
    if (!fd.is_open() && errno == EEXIST) continue;
    if (!fd.is_open()) throw_system_error("creating " + path);
    // The umask may have taken bits that a sweeper of the same user needs.
    if (::fchmod(fd.get(), 0600) != 0) throw_system_error("fchmod of " + path);
    // A sweep that found it in the meantime has removed it: again, then.
    if (!lock_shared(fd.get(), path)) continue;
    owner.next_number = 0;
    owner.marker = std::move(fd);
    owner.token = std::move(token);
  }
}

}  // namespace

std::string new_segment_name() {
  Owner& owner = make_current();
  const std::lock_guard lock(owner.mutex);
  become_owner(owner);
  char number[kNameMost];
  char* end = number + sizeof(number);
  char* begin = end;
  std::uint64_t rest = owner.next_number++;
  do {
    *--begin = kDigits[rest % kDigits.size()];
    rest /= kDigits.size();
  } while (rest != 0);
  std::string name;
  name.reserve(kNameMost);
  name.append(kPrefix).append(owner.token).append("_").append(begin, end);
  return name;
}

std::string_view segment_token(std::string_view name) noexcept {
  if (name.size() <= kMarkerLength + 1 || name.size() > kNameMost || name[kMarkerLength] != '_' ||
      !is_digits(name.substr(kMarkerLength + 1))) {
    return {};
  }
  return marker_token(name.substr(0, kMarkerLength));
}

OwnerHold::OwnerHold(std::string_view name) {
  const std::string token(segment_token(name));
  if (token.empty()) return;
  Owner& owner = make_current();
  const auto join = [&](Held& held) {
    ++held.count;
    entry_ = &held;
    generation_ = fork_generation();
  };
  {
    const std::lock_guard lock(owner.mutex);
    if (token == owner.token) return;
    const auto found = owner.held.find(token);
    if (found != owner.held.end()) {
      join(*found->second);
      return;
    }
  }
  // Without the mutex, since this may wait. If another thread is faster, its descriptor serves.
  const std::string path = path_of(marker_name(token));
  FileDescriptor fd;
  const std::uint64_t forks_before = forks.load(std::memory_order_seq_cst);
  for (;;) {
    fd.reset(open_again(path, O_RDONLY));
    if (!fd.is_open()) {
      // Another user's segment will refuse by itself.
      if (errno == ENOENT || errno == EACCES) return;
      throw_system_error("opening " + path);
    }
    if (lock_shared(fd.get(), path)) break;
  }
  const std::lock_guard lock(owner.mutex);
  std::unique_ptr<Held>& held = owner.held[token];
  if (held == nullptr) {
    try {
      held = std::make_unique<Held>();
      held->token = token;
    } catch (const std::bad_alloc&) {
      owner.held.erase(token);
      throw;
    }
    held->marker = std::move(fd);
    held->forks = forks_before;
  }
  join(*held);
}

OwnerHold::OwnerHold(OwnerHold&& other) noexcept
    : entry_(std::exchange(other.entry_, nullptr)), generation_(other.generation_) {}

OwnerHold& OwnerHold::operator=(OwnerHold&& other) noexcept {
  if (this != &other) {
    OwnerHold old;
    old.entry_ = std::exchange(entry_, std::exchange(other.entry_, nullptr));
    old.generation_ = std::exchange(generation_, other.generation_);
  }
  return *this;
}

OwnerHold::~OwnerHold() {
  if (entry_ == nullptr || generation_ != fork_generation()) return;
  Owner* owner = current.load(std::memory_order_acquire);
  auto* held = static_cast<Held*>(entry_);
  decltype(owner->held)::node_type last;
  {
    const std::lock_guard lock(owner->mutex);
    if (--held->count != 0) return;
    last = owner->held.extract(held->token);
  }
  // Where no child has the descriptor too, it tells by itself whether the owner lives, which is
  // the usual case. A child's lock must not be changed: then a new descriptor is opened below.
  if (held->forks == forks.load(std::memory_order_seq_cst)) {
    if (::flock(held->marker.get(), LOCK_EX | LOCK_NB) != 0) return;
    ::flock(held->marker.get(), LOCK_UN);
  }
  held->marker.reset();
  try {
    sweep_owners({held->token});
  } catch (const std::bad_alloc&) {
    // The next sweep does it.
  }
}

void adopt_segment(std::string_view name) {
  if (name.empty() || name.size() > kAdoptMost) {
    throw Error(ErrorCode::kInvalidArgument, "adopt_segment: a name has 1 to 250 characters");
  }
  Owner& owner = make_current();
  const std::lock_guard lock(owner.mutex);
  become_owner(owner);
  const auto [entry, is_new] = owner.adopted.try_emplace(std::string(name));
  if (is_new) {
    try {
      entry->second.slot = owner.list.add(owner.marker.get(), name);
    } catch (...) {
      owner.adopted.erase(entry);
      throw;
    }
  }
  ++entry->second.count;
}

void disown_segment(std::string_view name) noexcept {
  Owner* owner = current.load(std::memory_order_acquire);
  if (owner == nullptr) return;
  const std::lock_guard lock(owner->mutex);
  const auto entry = owner->adopted.find(name);
  if (entry == owner->adopted.end() || --entry->second.count != 0) return;
  owner->list.remove(entry->second.slot);
  owner->adopted.erase(entry);
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

void leave_segments() noexcept {
  Owner* owner = current.load(std::memory_order_acquire);
  if (owner == nullptr) return;
  const std::lock_guard lock(owner->mutex);
  if (owner->token.empty()) return;
  for (const auto& [name, adopted] : owner->adopted) ::unlink(path_of(name).c_str());
  owner->adopted.clear();
  owner->list.clear();
  ::unlink(path_of(marker_name(owner->token)).c_str());
  owner->marker.reset();
  owner->token.clear();
}

}  // namespace stook::shm
