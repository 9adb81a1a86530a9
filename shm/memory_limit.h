// How much memory this process may still take, without being told no by SIGKILL.
//
// In a memory cgroup there is no error to catch: touching a page beyond the limit ends the process.
// So whoever grows asks first. Page cache does not count as used: the kernel drops it on demand,
// and a process that has read a large file would otherwise seem to have nothing left.
//
// Every function may be called from any thread, allocates a little heap, reads a few small files of
// /proc and /sys (tens of microseconds) and throws nothing: what a missing or malformed file would
// have limited counts as unlimited.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace stook::shm {

inline constexpr std::uint64_t kUnlimited = UINT64_MAX;

// The limits as a given /proc and file system show them. Immutable after construction.
class MemoryLimits {
 public:
  // Finds where the cgroup hierarchies are mounted. Tests pass a made-up tree: `proc` stands for
  // /proc, `root` is put before the mount points.
  explicit MemoryLimits(std::string proc = "/proc", std::string root = "");

  // Bytes: the machine's memory or the lowest limit of this process's cgroup and its ancestors.
  std::uint64_t machine_memory() const;

  // Bytes: what the machine has available or the least that the cgroup or an ancestor has left.
  std::uint64_t memory_left() const;

  // `limit` (RLIMIT_AS) less what this process has mapped; kUnlimited if `limit` is.
  std::uint64_t address_space_left(std::uint64_t limit) const;

  // Processes that the kernel has killed for want of memory: in this cgroup where it counts them,
  // else on the machine. Only a change of it means something.
  std::uint64_t oom_kill_count() const;

 private:
  enum class Version { kV1, kV2 };
  struct Hierarchy {
    Version version;
    std::string mount_point;  // with `root` before it
    std::string mounted;      // which cgroup appears there: "/" but in some containers
  };
  struct Group {
    Version version;
    std::string directory;
  };

  // The memory cgroups that bound this process: in each hierarchy its own first, then the
  // ancestors.
  std::vector<Group> groups() const;

  std::string proc_;
  std::vector<Hierarchy> hierarchies_;
};

// The same for this process as it is, see MemoryLimits.
std::uint64_t machine_memory();
std::uint64_t memory_left();
std::uint64_t oom_kill_count();

// Bytes of address space left under RLIMIT_AS, or kUnlimited.
std::uint64_t address_space_left();

// RLIMIT_FSIZE in bytes, or kUnlimited. It bounds a memfd too.
std::uint64_t file_size_limit();

}  // namespace stook::shm
