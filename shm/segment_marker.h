// What the files of segment owners have in common: their names, their locks, the list in a marker.
// Private to shm/segment_owner.cpp and shm/segment_sweep.cpp; see shm/segment_owner.h.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "shm/error.h"

namespace stook::shm {

inline constexpr const char* kDirectory = "/dev/shm";
inline constexpr std::string_view kPrefix = "stook_";
inline constexpr std::string_view kDigits = "0123456789abcdefghijklmnopqrstuvwxyz";
inline constexpr std::size_t kTokenLength = 13;  // 64 random bits
inline constexpr std::size_t kMarkerLength = kPrefix.size() + kTokenLength;
inline constexpr std::size_t kNameMost = 30;     // of a segment of ours
inline constexpr std::size_t kAdoptMost = 250;   // of any segment
inline constexpr std::size_t kSweepAtOnce = 32;  // markers that are held open together
// How long a sweep of one owner may keep others waiting, before that is an error.
inline constexpr int kSweepPatienceMs = 10'000;

std::string path_of(std::string_view name);
bool is_digits(std::string_view text) noexcept;
// The token of a marker's name, or nothing.
std::string_view marker_token(std::string_view name) noexcept;
std::string marker_name(std::string_view token);
std::string make_token();

bool is_same_file(const struct stat& a, const struct stat& b) noexcept;
// Whether `path` still leads to what `fd` has open.
bool is_still_there(int fd, const std::string& path) noexcept;
// A shared lock on the marker `fd`, whose path is `path`. False if a sweep has removed it. Waits
// for a sweep to end, but asks again and again instead of sleeping in flock: a child that was
// forked during a sweep can hold on the lock of a marker which is gone. Throws Error(kSystem).
bool lock_shared(int fd, const std::string& path);
// -1 with errno set.
int open_again(const std::string& path, int flags) noexcept;

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

inline constexpr std::uint64_t kFirstListBytes = 4096;
inline constexpr std::uint64_t kListStep = 65536;

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
                      " bytes in " + kDirectory + ": " + std::strerror(error) +
                      "; release arrays, remove leftovers there, or make it larger",
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
std::vector<std::string> read_adopted(int fd);

// Removes what these owners left, those of them that are gone. Returns how many segments.
std::uint64_t sweep_owners(const std::vector<std::string>& tokens) noexcept;

}  // namespace stook::shm
