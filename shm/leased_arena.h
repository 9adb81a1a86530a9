// The reader's side of an arena: which blocks it holds, and how it gives them back.
//
// Counted by reference: the manager holds one, every leased block holds one. The arena stays mapped
// until the last lease is gone, whatever became of the worker, the manager or the loader. What
// takes time at the end, unmapping it and punching blocks of a dead worker, is a reclaim thread's
// business where there is one (shm/reclaimer.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "shm/arena.h"
#include "shm/block_allocator.h"
#include "shm/reclaimer.h"
#include "shm/sparse_array.h"

namespace stook::shm {

// Hears of every block that is released, to a living worker or after its death. Any thread.
class ReleaseObserver {
 public:
  virtual ~ReleaseObserver() = default;
  virtual void on_release(std::uint64_t bytes) noexcept = 0;
};

class LeasedArena final : private Reclaimable {
 public:
  // Maps the arena behind `fd` (the descriptor stays the caller's). Starts with one reference.
  static LeasedArena* open(int fd, const ArenaLayout& layout,
                           std::shared_ptr<ReleaseObserver> observer);

  // Takes the hold of a block that the worker handed over, and one reference. False, and nothing
  // taken, if the values cannot be true: out of the arena, or held already.
  bool lease(BlockId id, std::uint64_t offset, std::uint64_t bytes) noexcept;

  // Gives a leased block back and drops its reference; `this` may be gone afterwards. Any thread,
  // in any order, without the GIL; blocks only where the worker is dead and no reclaim thread is
  // there (a punched hole) or where it starves (a ring). In a forked child of the process that
  // leased it, it gives back nothing.
  void release(BlockId id) noexcept;

  // The worker is dead: blocks go back to the system, not to it. Those still leased stay as they
  // are.
  void retire() noexcept;

  void add_reference() noexcept { references_.fetch_add(1, std::memory_order_relaxed); }
  void drop_reference() noexcept;

  const Mapping& memory() const noexcept { return memory_; }
  ArenaHeader& header() const noexcept { return arena_header(memory_); }
  std::uint64_t held_bytes() const noexcept { return held_bytes_.load(std::memory_order_relaxed); }
  std::uint64_t held_blocks() const noexcept {
    return held_blocks_.load(std::memory_order_relaxed);
  }

 private:
  LeasedArena(int fd, const ArenaLayout& layout, std::shared_ptr<ReleaseObserver> observer);
  ~LeasedArena() = default;
  void reclaim() noexcept override { delete this; }
  void reclaim_at_exit() noexcept override {}  // the system takes it

  struct Extent {
    std::uint64_t offset;
    std::uint64_t bytes;
  };
  class Hole;
  class Rest;
  void punch(std::uint64_t offset, std::uint64_t bytes) const noexcept;
  void punch_unleased() const noexcept;

  Mapping memory_;
  ArenaLayout layout_;
  std::shared_ptr<ReleaseObserver> observer_;
  std::uint64_t generation_;  // of the process that made this
  std::atomic<std::uint64_t> references_{1};
  std::atomic<bool> retired_{false};
  std::atomic<std::uint64_t> held_bytes_{0};
  std::atomic<std::uint64_t> held_blocks_{0};
  // Bit per block. Set by the one thread that decodes, cleared by whichever releases.
  std::atomic<std::uint64_t> held_[kMaxBlocks / 64]{};
  // Where a held block lies. Written before its held bit is set, read before it is cleared: after
  // that, the id may be leased anew.
  SparseArray<Extent> extents_;
};

}  // namespace stook::shm
