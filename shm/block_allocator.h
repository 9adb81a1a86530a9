// Allocation of blocks from an arena, private to the arena's owner.
//
// Everything here lies in the owner's own heap; the arena holds bytes of arrays and nothing else,
// so a killed process leaves no allocator to repair. Blocks are recycled last in, first out per
// size class: the block used a moment ago is mapped on both sides and still in cache. What stays
// idle beyond a limit is punched out of the arena and its range may serve any size again.
//
// Not thread-safe: the owner holds a mutex where several threads allocate.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "shm/shared_memory.h"
#include "shm/sparse_array.h"

namespace stook::shm {

using BlockId = std::uint32_t;
inline constexpr std::uint32_t kMaxBlocks = 65536;  // bits in the return bitmap

struct Block {
  BlockId id;
  std::uint64_t offset;    // from the start of the arena; page-aligned
  std::uint64_t capacity;  // bytes; a multiple of the page size
  bool zeroed;             // its bytes were never written since they last read as zero
};

struct BlockStats {
  std::uint64_t live_bytes = 0;    // capacity of blocks that somebody holds
  std::uint64_t idle_bytes = 0;    // capacity of free blocks that keep their pages
  std::uint64_t mapped_bytes = 0;  // live + idle
  std::uint64_t live_blocks = 0;
};

// The capacity that a request of `bytes` gets: whole pages; above eight pages, eight steps to each
// doubling, so that at most an eighth is wasted.
std::uint64_t block_capacity(std::uint64_t bytes);

class BlockAllocator {
 public:
  // Allocates from [begin, end) of `memory`, which must outlive this. `bytes_left` says how many
  // more bytes the machine can give; asked before growing.
  BlockAllocator(const Mapping& memory, std::uint64_t begin, std::uint64_t end,
                 std::uint64_t (*bytes_left)() = nullptr);

  // A block of at least `bytes`, held by the owner; nothing if the arena or the machine has no
  // room.
  std::optional<Block> allocate(std::uint64_t bytes);
  // The block that starts at `offset` and that the owner holds.
  std::optional<Block> find(std::uint64_t offset) const;

  // A block is held by its owner (an array of its own lives in it), by the other side (it was
  // handed over), or by both, and is free again when both have let go.
  void hand_over(BlockId id);
  void owner_releases(BlockId id);
  // False if this block was not handed over: whoever returned it is mistaken, and nothing changes.
  bool other_side_returns(BlockId id);

  // Gives idle blocks back to the system, the one that has been idle longest first, until at most
  // `keep` bytes are idle; stops once it has given back `most`. True if it stopped early, so that
  // another call has something to do. For an owner with nothing better to do: what is given back
  // costs its page faults again.
  bool trim_idle_to(std::uint64_t keep, std::uint64_t most);

  // Ids handed out so far lie below this.
  std::uint32_t block_count() const noexcept { return static_cast<std::uint32_t>(blocks_.size()); }
  const BlockStats& stats() const noexcept { return stats_; }

 private:
  enum Holder : std::uint8_t { kNobody = 0, kOwner = 1, kOtherSide = 2 };
  struct Record {
    std::uint64_t offset = 0;
    std::uint64_t capacity = 0;
    std::uint64_t freed_at = 0;  // sequence number, to find what has been idle longest
    std::uint8_t holders = kNobody;
    bool zeroed = false;
  };

  std::optional<Block> recycle(std::uint32_t size_class, std::uint64_t capacity);
  std::optional<Block> carve(std::uint64_t capacity);
  bool may_grow(std::uint64_t bytes);
  void let_go(BlockId id, Holder holder);
  std::map<std::uint64_t, std::uint64_t>::iterator first_fit(std::uint64_t capacity);
  void trim_idle();
  // Gives idle blocks back, the one that has been idle longest first: at least `bytes` if there are
  // so many. False if nothing is idle.
  bool evict_bytes(std::uint64_t bytes);
  bool evict_coldest() { return evict_bytes(1); }
  void return_range(std::uint64_t offset, std::uint64_t bytes);
  void evict(BlockId id);

  const Mapping& memory_;
  std::uint64_t (*bytes_left_)();
  std::uint64_t growth_budget_ = 0;  // bytes that may be carved before asking bytes_left_ again
  std::vector<Record> blocks_;
  std::vector<BlockId> spare_ids_;
  std::vector<std::vector<BlockId>> idle_;         // per size class, hottest last
  std::map<std::uint64_t, std::uint64_t> ranges_;  // free and unbacked: offset -> bytes
  std::uint64_t begin_;
  std::uint64_t sequence_ = 0;
  // Most bytes that were live in this period of frees, and in the one before.
  std::uint64_t peak_live_bytes_ = 0;
  std::uint64_t earlier_peak_live_bytes_ = 0;
  std::uint64_t page_count_;
  // BlockId + 1 of the block that starts at a page, else 0. Private to the process, so that a child
  // forked by user code cannot disturb it.
  SparseArray<std::uint32_t> page_index_;
  BlockStats stats_;
};

}  // namespace stook::shm
