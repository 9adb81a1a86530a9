// The worker's side of its arena: allocation for any thread of the worker, and hand-over.
//
// The mutex is the process's own: other threads of the worker allocate and free while the main
// thread runs a job. Returned blocks are taken back at every allocation, not once per job, so that
// the hottest block is the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>

#include "shm/arena.h"
#include "shm/block_allocator.h"
#include "shm/file_descriptor.h"
#include "workers/protocol.h"

namespace stook::workers {

class WorkerArena {
 public:
  // Maps the arena. The descriptor is kept for children that user code may fork: there the arena is
  // remapped private (see remap_private_in_child), so that their writes stay theirs.
  WorkerArena(shm::FileDescriptor fd, const shm::ArenaLayout& layout);
  ~WorkerArena();
  WorkerArena(const WorkerArena&) = delete;
  WorkerArena& operator=(const WorkerArena&) = delete;

  struct Allocation {
    std::byte* data;
    shm::Block block;
  };

  // Nothing if the arena or the machine has no room, or in a forked child of the worker.
  std::optional<Allocation> allocate(std::uint64_t bytes);
  // For an array of user code, which may keep it for ever: nothing once kMaxArrayBlocks are live,
  // so that results and errors always find a block to travel in.
  std::optional<Allocation> allocate_array(std::uint64_t bytes);
  static constexpr std::uint64_t kMaxArrayBlocks = shm::kMaxBlocks / 4 * 3;
  // True if `pointer` lies in the arena, whoever may use it.
  bool contains(const void* pointer) const noexcept { return memory_.contains(pointer); }
  // The worker's own hold of the block at `pointer` ends. Any thread.
  void free(void* pointer) noexcept;
  // The block that starts at `pointer` and that the worker holds.
  std::optional<shm::Block> find(const void* pointer);
  // The parent holds these from now on.
  void hand_over(std::span<const BlockRef> blocks);
  // The worker's hold of blocks it made for an element itself ends.
  void release_own(std::span<const BlockRef> blocks);

  // Takes returned blocks back, and gives idle ones back to the system down to what a worker
  // without work may keep. Does a bounded part of it, some milliseconds, and returns true if there
  // is more. Any thread; not in a forked child.
  bool give_back_idle();

  std::uint64_t offset_of(const void* pointer) const noexcept {
    return static_cast<std::uint64_t>(static_cast<const std::byte*>(pointer) - memory_.data());
  }
  const shm::Mapping& memory() const noexcept { return memory_; }
  bool in_forked_child() const noexcept;
  std::uint64_t live_blocks();
  shm::BlockStats stats();
  std::uint64_t capacity_bytes() const noexcept {
    return layout_.total_bytes - layout_.first_block_offset();
  }

 private:
  void harvest();
  std::optional<Allocation> allocate_up_to(std::uint64_t bytes, std::uint64_t most_blocks);
  static void remap_private_in_child();

  shm::FileDescriptor fd_;
  shm::ArenaLayout layout_;
  shm::Mapping memory_;
  std::uint64_t generation_;
  std::mutex mutex_;
  shm::BlockAllocator allocator_;  // guarded by mutex_
};

}  // namespace stook::workers
