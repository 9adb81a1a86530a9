#include "shm/leased_arena.h"

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>
#include <vector>

#include "shm/fork_guard.h"

namespace stook::shm {

// A block of a retired arena on its way back to the system, with the reference of its lease.
class LeasedArena::Hole final : public Reclaimable {
 public:
  Hole(LeasedArena* arena, Extent extent) : arena_(arena), extent_(extent) {}
  void reclaim() noexcept override {
    arena_->punch(extent_.offset, extent_.bytes);
    arena_->drop_reference();
    delete this;
  }
  void reclaim_at_exit() noexcept override {}  // the system takes it

 private:
  LeasedArena* arena_;
  Extent extent_;
};

// What nobody leases of a retired arena, on its way back to the system. Holds a reference.
class LeasedArena::Rest final : public Reclaimable {
 public:
  explicit Rest(LeasedArena* arena) : arena_(arena) { arena_->add_reference(); }
  void reclaim() noexcept override {
    arena_->punch_unleased();
    arena_->drop_reference();
    delete this;
  }
  void reclaim_at_exit() noexcept override {}  // the system takes it

 private:
  LeasedArena* arena_;
};

LeasedArena* LeasedArena::open(int fd, const ArenaLayout& layout,
                               std::shared_ptr<ReleaseObserver> observer) {
  return new LeasedArena(fd, layout, std::move(observer));
}

LeasedArena::LeasedArena(int fd, const ArenaLayout& layout,
                         std::shared_ptr<ReleaseObserver> observer)
    : memory_(fd, layout.total_bytes, Access::kReadWrite),
      layout_(layout),
      observer_(std::move(observer)),
      generation_(fork_generation()),
      extents_(kMaxBlocks) {}

bool LeasedArena::lease(BlockId id, std::uint64_t offset, std::uint64_t bytes) noexcept {
  if (id >= kMaxBlocks || offset % kPageBytes != 0 || offset < layout_.first_block_offset() ||
      offset > layout_.total_bytes || bytes > layout_.total_bytes - offset) {
    return false;
  }
  std::atomic<std::uint64_t>& word = held_[id / 64];
  const std::uint64_t bit = std::uint64_t{1} << (id % 64);
  if ((word.load(std::memory_order_acquire) & bit) != 0) return false;
  extents_[id] = {offset, bytes};
  word.fetch_or(bit, std::memory_order_release);
  held_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  held_blocks_.fetch_add(1, std::memory_order_relaxed);
  add_reference();
  return true;
}

void LeasedArena::release(BlockId id) noexcept {
  if (generation_ != fork_generation()) return;  // the forking process still holds it
  const std::uint64_t bit = std::uint64_t{1} << (id % 64);
  const Extent extent = extents_[id];
  // SYNC(arena.retired): with the store in retire(), both sequentially consistent: either retire()
  // sees the bit gone and punches the block, or the load below sees the arena retired.
  const std::uint64_t before = held_[id / 64].fetch_and(~bit, std::memory_order_seq_cst);
  if ((before & bit) == 0) return;  // a second release changes nothing
  held_bytes_.fetch_sub(extent.bytes, std::memory_order_relaxed);
  held_blocks_.fetch_sub(1, std::memory_order_relaxed);
  Hole* hole = nullptr;
  if (retired_.load(std::memory_order_seq_cst)) {
    const Extent pages{extent.offset, round_up(extent.bytes, kPageBytes)};
    if (reclaimer_has_threads()) hole = new (std::nothrow) Hole(this, pages);
    if (hole == nullptr) punch(pages.offset, pages.bytes);
  } else {
    return_block(header().returned, id);
  }
  observer_->on_release(extent.bytes);
  if (hole != nullptr) {
    submit_reclaim(hole);  // the lease's reference is its
  } else {
    drop_reference();
  }
}

void LeasedArena::punch(std::uint64_t offset, std::uint64_t bytes) const noexcept {
  if (!memory_.punch(offset, bytes)) count_reclaim_failure("punching an arena", errno);
}

void LeasedArena::retire() noexcept {
  if (generation_ != fork_generation()) return;
  if (retired_.exchange(true, std::memory_order_seq_cst)) return;
  Rest* rest = reclaimer_has_threads() ? new (std::nothrow) Rest(this) : nullptr;
  if (rest != nullptr) {
    submit_reclaim(rest);
  } else {
    punch_unleased();
  }
}

// After retired_ was set: nothing is leased any more, and what is released meanwhile is punched by
// whoever releases it.
void LeasedArena::punch_unleased() const noexcept {
  std::vector<Extent> held;
  try {
    for (std::uint32_t word = 0; word < kMaxBlocks / 64; ++word) {
      const std::uint64_t bits = held_[word].load(std::memory_order_seq_cst);
      for (std::uint32_t bit = 0; bits != 0 && bit < 64; ++bit) {
        if ((bits >> bit & 1) != 0) held.push_back(extents_[word * 64 + bit]);
      }
    }
    std::sort(held.begin(), held.end(),
              [](const Extent& a, const Extent& b) { return a.offset < b.offset; });
  } catch (const std::bad_alloc&) {
    return;  // the memory goes back when the arena is unmapped
  }
  // Everything but the held blocks; the ring in front of the blocks is still read.
  std::uint64_t from = layout_.first_block_offset();
  for (const Extent& extent : held) {
    if (extent.offset > from) punch(from, extent.offset - from);
    from = std::max(from, round_up(extent.offset + extent.bytes, kPageBytes));
  }
  if (from < layout_.total_bytes) punch(from, layout_.total_bytes - from);
}

void LeasedArena::drop_reference() noexcept {
  if (references_.fetch_sub(1, std::memory_order_acq_rel) == 1) submit_reclaim(this);
}

}  // namespace stook::shm
