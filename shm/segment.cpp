#include "shm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/interprocess/exceptions.hpp>
#include <boost/interprocess/permissions.hpp>
#include <boost/interprocess/shared_memory_object.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <string_view>
#include <utility>

#include "shm/error.h"
#include "shm/fork_guard.h"
#include "shm/memory_limit.h"
#include "shm/shared_memory.h"

namespace stook::shm {

namespace bip = boost::interprocess;

namespace {

constexpr const char* kDirectory = "/dev/shm";
constexpr std::size_t kNameMost = 250;
// Reserving in one call is undone as a whole when a signal comes; in steps it gets on.
constexpr std::uint64_t kReserveStep = std::uint64_t{16} << 20;
// Growth between two looks at what the machine has left, and the share of that which may not be
// taken: others run here too. As in BlockAllocator.
constexpr std::uint64_t kGrowthStep = std::uint64_t{64} << 20;
constexpr std::uint64_t kReserve = std::uint64_t{48} << 20;

// What may still be created before the next look. Any thread, relaxed: it is an estimate, and two
// threads that look at once do no harm.
std::atomic<std::uint64_t> growth_budget{0};

// Throws Error(kNoSharedMemory) where the machine or the cgroup has no `bytes` left.
void check_memory_left(std::uint64_t bytes) {
  std::uint64_t budget = growth_budget.load(std::memory_order_relaxed);
  while (bytes <= budget) {
    if (growth_budget.compare_exchange_weak(budget, budget - bytes, std::memory_order_relaxed)) {
      return;
    }
  }
  // In a memory cgroup the alternative to this look is SIGKILL: there is no error to catch.
  const std::uint64_t left = memory_left();
  if (left < kReserve || bytes > left - kReserve) {
    throw Error(ErrorCode::kNoSharedMemory,
                "a shared segment of " + std::to_string(bytes) +
                    " bytes was asked for, but the machine or its memory cgroup has only " +
                    std::to_string(left) + " bytes left, of which " + std::to_string(kReserve) +
                    " are kept free; release arrays, use smaller ones, or raise the memory limit",
                ENOMEM);
  }
  growth_budget.store(std::min(kGrowthStep, (left - kReserve - bytes) / 8),
                      std::memory_order_relaxed);
}

[[noreturn]] void throw_no_room(std::uint64_t bytes, int error) {
  std::string message =
      "a shared segment of " + std::to_string(bytes) + " bytes was asked for, but " + kDirectory;
  struct statvfs space{};
  if (::statvfs(kDirectory, &space) == 0) {
    message += " has " + std::to_string(space.f_bavail * space.f_frsize) + " bytes free of " +
               std::to_string(space.f_blocks * space.f_frsize);
    if (space.f_files != 0 && space.f_favail == 0) message += ", and room for no more files";
  } else {
    message += " has no room";
  }
  throw Error(ErrorCode::kNoSharedMemory,
              message + ": " + std::strerror(error) +
                  "; release arrays, remove leftovers there, or make it larger (mount -o "
                  "remount,size=..., docker run --shm-size=...)",
              error);
}

void reserve(int fd, std::uint64_t bytes) {
  for (std::uint64_t from = 0; from < bytes;) {
    const std::uint64_t step = std::min(kReserveStep, bytes - from);
    const int error = ::posix_fallocate(fd, static_cast<off_t>(from), static_cast<off_t>(step));
    if (error == EINTR) continue;
    if (error != 0) throw_no_room(bytes, error);
    from += step;
  }
}

[[noreturn]] void throw_native(const std::string& what, const bip::interprocess_exception& error) {
  errno = error.get_native_error();
  throw_system_error(what);
}

// Whether this process has about as many mappings as it may have.
bool mappings_ran_out(std::uint64_t& most) {
  std::ifstream limit("/proc/sys/vm/max_map_count");
  std::ifstream maps("/proc/self/maps");
  if (!(limit >> most)) return false;
  std::uint64_t count = 0;
  for (std::string line; std::getline(maps, line);) ++count;
  return count + 16 >= most;
}

// Not populated. A page that its first write faults in is still in cache when it is filled, which
// filling all of them before undoes (6 MiB: a tenth to a half slower); and who attaches may want
// to read a part only.
bip::mapped_region map(const bip::shared_memory_object& object, std::uint64_t bytes,
                       const std::string& name) {
  try {
    return bip::mapped_region(object, bip::read_write, 0, static_cast<std::size_t>(bytes));
  } catch (const bip::interprocess_exception& error) {
    const int native = error.get_native_error();
    const std::string what = "mapping the " + std::to_string(bytes) + " bytes of segment " + name;
    if (native != ENOMEM) throw_native(what, error);
    std::uint64_t most = 0;
    throw Error(ErrorCode::kSystem,
                what + ": " +
                    (mappings_ran_out(most)
                         ? "this process has as many mappings as vm.max_map_count allows (" +
                               std::to_string(most) +
                               "); release arrays, or raise it (sysctl -w vm.max_map_count=...)"
                         : "no address space or memory is left; release arrays, or raise the "
                           "limit (ulimit -v)"),
                ENOMEM);
  }
}

// The name as a file in kDirectory has it: a leading '/', as shm_open wants it, is dropped.
std::string checked_name(const std::string& given) {
  std::string name = given.substr(!given.empty() && given[0] == '/' ? 1 : 0);
  if (name.empty() || name.size() > kNameMost || name == "." || name == ".." ||
      name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    std::string shown;
    for (const char c : given.substr(0, 64)) shown.push_back(c < ' ' || c == 0x7f ? '?' : c);
    throw Error(ErrorCode::kInvalidArgument,
                "'" + shown + (given.size() > 64 ? "...'" : "'") +
                    " is no name of a shared segment: 1 to 250 characters, no '/' but a leading "
                    "one, neither '.' nor '..'");
  }
  if (is_marker(name)) {
    throw Error(ErrorCode::kInvalidArgument,
                "'" + name + "' is no name of a shared segment: by this file in " + kDirectory +
                    " it is told whether the process that made it lives");
  }
  return name;
}

}  // namespace

Segment::Pointer Segment::create(std::uint64_t bytes, bool secret) {
  bytes = std::max(bytes, kPageBytes);
  const std::uint64_t most = std::min<std::uint64_t>(file_size_limit(), INT64_MAX / 2);
  if (bytes > most) {  // beyond RLIMIT_FSIZE the answer is SIGXFSZ
    throw Error(ErrorCode::kNoSharedMemory,
                "a shared segment of " + std::to_string(bytes) +
                    " bytes was asked for, but a file may have at most " + std::to_string(most) +
                    " (RLIMIT_FSIZE, ulimit -f)",
                EFBIG);
  }
  check_memory_left(bytes);
  Pointer segment(new Segment());
  segment->generation_ = fork_generation();
  bip::shared_memory_object object;
  for (;;) {
    segment->name_ = new_segment_name(secret);
    try {
      object = bip::shared_memory_object(bip::create_only, segment->name_.c_str(), bip::read_write,
                                         bip::permissions(0600));
      break;
    } catch (const bip::interprocess_exception& error) {
      forget_secret_name(segment->name_);
      if (error.get_native_error() == EEXIST) continue;
      if (error.get_native_error() == ENOSPC) throw_no_room(bytes, ENOSPC);
      throw_native("creating the shared segment " + segment->name_, error);
    }
  }
  try {
    reserve(object.get_mapping_handle().handle, bytes);
    segment->region_ = map(object, bytes, segment->name_);
  } catch (...) {
    ::shm_unlink(segment->name_.c_str());
    forget_secret_name(segment->name_);
    throw;
  }
  segment->secret_ = secret;
  segment->bytes_ = bytes;
  segment->created_ = true;
  return segment;
}

Segment::Pointer Segment::attach(const std::string& name) {
  Pointer segment(new Segment());
  segment->generation_ = fork_generation();
  segment->name_ = checked_name(name);
  // Before it is opened: from here on no sweep takes it away.
  segment->hold_ = OwnerHold(segment->name_);
  bip::shared_memory_object object;
  try {
    object = bip::shared_memory_object(bip::open_only, segment->name_.c_str(), bip::read_write);
  } catch (const bip::interprocess_exception& error) {
    if (error.get_native_error() == ENOENT) {
      throw Error(ErrorCode::kSystem,
                  "there is no shared segment " + segment->name_ +
                      " (any more): it was unlinked, or its last array was dropped where "
                      "unlink_on_del() had been called, or whoever had it was killed; let whoever "
                      "opens it call unlink_on_del(), or keep the array until then",
                  ENOENT);
    }
    throw_native("opening the shared segment " + segment->name_, error);
  }
  struct stat status{};
  if (::fstat(object.get_mapping_handle().handle, &status) != 0) {
    throw_system_error("fstat of the shared segment " + segment->name_);
  }
  if (!S_ISREG(status.st_mode) || status.st_size <= 0) {
    throw Error(ErrorCode::kInvalidArgument,
                std::string(kDirectory) + "/" + segment->name_ +
                    (S_ISREG(status.st_mode) ? " is empty" : " is no regular file") +
                    ": nothing that can be mapped as a shared segment");
  }
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  segment->region_ = map(object, bytes, segment->name_);
  segment->bytes_ = bytes;
  return segment;
}

bool Segment::is_created_here() const noexcept {
  return created_ && generation_ == fork_generation();
}

bool Segment::unlinks_on_release() const noexcept {
  return unlinks_ && generation_ == fork_generation();
}

void Segment::unlink_on_release() {
  if (unlinks_on_release()) return;
  adopt_segment(name_);
  unlinks_ = true;
  if (generation_ == fork_generation()) return;
  // Asked for in a forked child: from now on this copy of the object is the child's own.
  generation_ = fork_generation();
  created_ = false;
  secret_ = false;
}

void Segment::keep_on_release() noexcept {
  if (unlinks_on_release()) disown_segment(name_);
  unlinks_ = false;
}

void Segment::tell_name() noexcept {
  if (!secret_) return;
  secret_ = false;
  if (generation_ == fork_generation()) forget_secret_name(name_);
}

void Segment::release(Segment* segment) noexcept {
  if (segment == nullptr) return;
  if (segment->generation_ != fork_generation()) {
    segment->unlinks_ = false;  // the process that mapped it sees to the name
    segment->secret_ = false;
    segment->reclaim();
    return;
  }
  submit_reclaim(segment);
}

void Segment::reclaim() noexcept {
  unlink_if_asked();
  delete this;
}

void Segment::reclaim_at_exit() noexcept { unlink_if_asked(); }

void Segment::unlink_if_asked() noexcept {
  if (!unlinks_ && !secret_) return;
  if (::shm_unlink(name_.c_str()) != 0 && errno != ENOENT) {
    const int error = errno;
    char what[kNameMost + 64];
    std::snprintf(what, sizeof(what), "removing the shared segment %s", name_.c_str());
    count_reclaim_failure(what, error);
  }
  // Only now: if this process is killed before, a sweep removes the name.
  if (unlinks_) disown_segment(name_);
  if (secret_) forget_secret_name(name_);
  unlinks_ = false;
  secret_ = false;
}

bool segment_exists(const std::string& name) noexcept {
  try {
    return ::access((std::string(kDirectory) + "/" + name).c_str(), F_OK) == 0;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

bool unlink_segment(const std::string& name) {
  const std::string checked = checked_name(name);
  if (::shm_unlink(checked.c_str()) == 0) return true;
  if (errno == ENOENT) return false;
  throw_system_error("removing the shared segment " + checked);
}

}  // namespace stook::shm
