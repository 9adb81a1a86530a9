#include "shm/segment_owner.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "shm/error.h"
#include "shm/file_descriptor.h"
#include "shm/fork_guard.h"
#include "shm/segment_marker.h"

namespace stook::shm {

namespace {

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
  std::unordered_set<std::string, NameHash, std::equal_to<>> secret;  // names of this process
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

std::string new_segment_name(bool secret) {
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
  if (secret) owner.secret.insert(name);
  return name;
}

void forget_secret_name(std::string_view name) noexcept {
  Owner* owner = current.load(std::memory_order_acquire);
  if (owner == nullptr) return;
  const std::lock_guard lock(owner->mutex);
  const auto entry = owner->secret.find(name);
  if (entry != owner->secret.end()) owner->secret.erase(entry);
}

std::string_view segment_token(std::string_view name) noexcept {
  if (name.size() <= kMarkerLength + 1 || name.size() > kNameMost || name[kMarkerLength] != '_' ||
      !is_digits(name.substr(kMarkerLength + 1))) {
    return {};
  }
  return marker_token(name.substr(0, kMarkerLength));
}

bool is_marker(std::string_view name) noexcept { return !marker_token(name).empty(); }

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

void leave_segments() noexcept {
  Owner* owner = current.load(std::memory_order_acquire);
  if (owner == nullptr) return;
  const std::lock_guard lock(owner->mutex);
  // They stay listed: a thread that was just given one makes its segment now, and leaving again
  // finds that.
  for (const std::string& name : owner->secret) ::unlink(path_of(name).c_str());
  if (owner->token.empty()) return;
  for (const auto& [name, adopted] : owner->adopted) ::unlink(path_of(name).c_str());
  owner->adopted.clear();
  owner->list.clear();
  ::unlink(path_of(marker_name(owner->token)).c_str());
  owner->marker.reset();
  owner->token.clear();
}

}  // namespace stook::shm