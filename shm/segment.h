// A named piece of shared memory: what one process creates, others attach by name.
//
// Of the same user (mode 0600), in /dev/shm, openable by the standard library's SharedMemory too.
// Its pages are reserved when it is created, so that a full /dev/shm is an error then and not a
// SIGBUS later. No descriptor stays open. See shm/segment_owner.h for what becomes of it when
// processes are killed.
#pragma once

#include <boost/interprocess/mapped_region.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "shm/reclaimer.h"
#include "shm/segment_owner.h"

namespace stook::shm {

class Segment final : private Reclaimable {
 public:
  // Gives the mapping back (see release); what unique_ptr below calls.
  struct Release {
    void operator()(Segment* segment) const noexcept { release(segment); }
  };
  using Pointer = std::unique_ptr<Segment, Release>;

  // Reserves `bytes` (at least one page) under a new name; they read as zero. Throws
  // Error(kNoSharedMemory) if /dev/shm, the machine or the memory cgroup has no room: nothing is
  // left then. With a secret name, the name goes with the segment, or when the process leaves,
  // unless tell_name() was called.
  static Pointer create(std::uint64_t bytes, bool secret = false);

  // Maps the segment `name` as it is. Throws Error(kSystem): ENOENT if there is none (any more),
  // EACCES if it is another user's, EMFILE, ENOMEM (with vm.max_map_count named where that is what
  // ran out); Error(kInvalidArgument) for what is not a name, or not a segment with bytes in it.
  static Pointer attach(const std::string& name);

  std::byte* data() const noexcept { return static_cast<std::byte*>(region_.get_address()); }
  std::uint64_t size() const noexcept { return bytes_; }  // of the segment: at least what was asked
  const std::string& name() const noexcept { return name_; }
  // This process, and not the one it was forked from, created it.
  bool is_created_here() const noexcept;

  // When it is released, or the process ends before that, its name goes too (adopt_segment). Asked
  // for in a forked child, it holds for the child's copy of this object. Throws Error(kSystem,
  // kNoSharedMemory).
  void unlink_on_release();
  bool unlinks_on_release() const noexcept;
  // The name is somebody else's business again.
  void keep_on_release() noexcept;

  // Somebody else knows the name from now on, and may ask for it.
  void tell_name() noexcept;

  // Unmaps, and unlinks if so asked or if the name is secret: on a reclaim thread where there is
  // one. In a forked child of the process that mapped it: unmaps here, and leaves the name to the
  // process that was asked.
  static void release(Segment* segment) noexcept;

 private:
  Segment() = default;
  ~Segment() = default;
  void reclaim() noexcept override;
  void reclaim_at_exit() noexcept override;
  void unlink_if_asked() noexcept;

  std::string name_;
  boost::interprocess::mapped_region region_;
  std::uint64_t bytes_ = 0;
  std::uint64_t generation_ = 0;  // of the process that mapped it
  bool created_ = false;
  bool unlinks_ = false;
  bool secret_ = false;
  OwnerHold hold_;
};

// Whether there is a segment of this name.
bool segment_exists(const std::string& name) noexcept;

// Removes the name; mappings stay valid. False if there was none. Throws Error(kSystem: EACCES,
// ...; kInvalidArgument for what is not a name).
bool unlink_segment(const std::string& name);

}  // namespace stook::shm
