#include "shm/block_allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>

namespace stook::shm {

namespace {

// Idle pages that are always worth keeping, however little is live.
constexpr std::uint64_t kIdleFloor = std::uint64_t{32} << 20;
// Growth between two looks at what the machine has left.
constexpr std::uint64_t kGrowthStep = std::uint64_t{64} << 20;
// The share of what the machine has left that may not be taken: others run here too.
constexpr std::uint64_t kReserve = std::uint64_t{48} << 20;
// Blocks up to this size are populated in one call when carved; beyond it the pages of an array
// that is not filled should not be paid for.
constexpr std::uint64_t kPopulateMost = std::uint64_t{8} << 20;
// How many frees a period of the peak is long.
constexpr std::uint64_t kPeakPeriod = 4096;

// Size class of `pages` (at least 1) and its capacity in pages.
struct SizeClass {
  std::uint32_t index;
  std::uint64_t pages;
};

SizeClass size_class(std::uint64_t pages) {
  if (pages <= 8) return {static_cast<std::uint32_t>(pages - 1), pages};
  // Round up to (8 + k) << shift with k in 1..8.
  const auto shift = static_cast<std::uint32_t>(std::bit_width(pages - 1)) - 4;
  const std::uint64_t steps = (pages + (std::uint64_t{1} << shift) - 1) >> shift;  // 9..16
  return {8 + shift * 8 + static_cast<std::uint32_t>(steps - 9), steps << shift};
}

}  // namespace

std::uint64_t block_capacity(std::uint64_t bytes) {
  const std::uint64_t pages = std::max<std::uint64_t>(1, (bytes + kPageBytes - 1) / kPageBytes);
  return size_class(pages).pages * kPageBytes;
}

BlockAllocator::BlockAllocator(const Mapping& memory, std::uint64_t begin, std::uint64_t end,
                               std::uint64_t (*bytes_left)())
    : memory_(memory),
      bytes_left_(bytes_left),
      begin_(begin),
      page_count_((end - begin) / kPageBytes),
      page_index_(page_count_) {
  ranges_.emplace(begin, end - begin);
}

std::optional<Block> BlockAllocator::allocate(std::uint64_t bytes) {
  if (bytes > memory_.size()) return std::nullopt;
  const std::uint64_t pages = std::max<std::uint64_t>(1, (bytes + kPageBytes - 1) / kPageBytes);
  const SizeClass wanted = size_class(pages);
  std::optional<Block> block;
  // The exact class first, then slightly larger ones: a warm block that wastes a quarter beats a
  // cold one that fits.
  for (std::uint32_t more = 0; more < 3 && !block; ++more) {
    block = recycle(wanted.index + more, wanted.pages * kPageBytes);
  }
  if (!block) block = carve(wanted.pages * kPageBytes);
  if (block) {
    stats_.live_bytes += block->capacity;
    ++stats_.live_blocks;
    peak_live_bytes_ = std::max(peak_live_bytes_, stats_.live_bytes);
  }
  return block;
}

std::optional<Block> BlockAllocator::recycle(std::uint32_t size_class, std::uint64_t capacity) {
  if (size_class >= idle_.size() || idle_[size_class].empty()) return std::nullopt;
  const BlockId id = idle_[size_class].back();
  Record& record = blocks_[id];
  if (record.capacity < capacity) return std::nullopt;
  idle_[size_class].pop_back();
  record.holders = kOwner;
  record.zeroed = false;
  stats_.idle_bytes -= record.capacity;
  return Block{id, record.offset, record.capacity, false};
}

std::optional<Block> BlockAllocator::carve(std::uint64_t capacity) {
  // Where there is no id, no memory or no range, idle blocks of other sizes are given up: nobody
  // holds them, so they must not be what a request fails for.
  while (spare_ids_.empty() && blocks_.size() >= kMaxBlocks) {
    if (!evict_coldest()) return std::nullopt;
  }
  while (!may_grow(capacity)) {
    if (!evict_bytes(capacity)) return std::nullopt;
  }
  auto range = first_fit(capacity);
  while (range == ranges_.end()) {
    if (!evict_bytes(capacity)) return std::nullopt;
    range = first_fit(capacity);
  }
  const std::uint64_t offset = range->first;
  const std::uint64_t rest = range->second - capacity;
  ranges_.erase(range);
  if (rest > 0) ranges_.emplace(offset + capacity, rest);

  BlockId id = 0;
  if (spare_ids_.empty()) {
    id = static_cast<BlockId>(blocks_.size());
    blocks_.emplace_back();
  } else {
    id = spare_ids_.back();
    spare_ids_.pop_back();
  }
  blocks_[id] = Record{offset, capacity, 0, kOwner, true};
  page_index_[(offset - begin_) / kPageBytes] = id + 1;
  stats_.mapped_bytes += capacity;
#ifdef MADV_POPULATE_WRITE
  // One call instead of a fault per page. Failure is no error: touching faults the pages in.
  if (capacity <= kPopulateMost) {
    ::madvise(memory_.data() + offset, capacity, MADV_POPULATE_WRITE);
  }
#endif
  return Block{id, offset, capacity, true};
}

std::map<std::uint64_t, std::uint64_t>::iterator BlockAllocator::first_fit(std::uint64_t capacity) {
  // First fit: few, low ranges.
  return std::find_if(ranges_.begin(), ranges_.end(),
                      [capacity](const auto& range) { return range.second >= capacity; });
}

bool BlockAllocator::may_grow(std::uint64_t bytes) {
  if (bytes_left_ == nullptr || bytes <= growth_budget_) {
    growth_budget_ -= bytes_left_ == nullptr ? 0 : bytes;
    return true;
  }
  // In a memory cgroup the alternative to this look is SIGKILL: there is no error to catch.
  const std::uint64_t left = bytes_left_();
  if (left < kReserve || bytes > left - kReserve) return false;
  growth_budget_ = std::min(kGrowthStep, (left - kReserve - bytes) / 8);
  return true;
}

std::optional<Block> BlockAllocator::find(std::uint64_t offset) const {
  if (offset < begin_ || offset % kPageBytes != 0) return std::nullopt;
  const std::uint64_t page = (offset - begin_) / kPageBytes;
  if (page >= page_count_) return std::nullopt;
  const std::uint32_t entry = page_index_[page];
  if (entry == 0) return std::nullopt;
  const Record& record = blocks_[entry - 1];
  if (record.offset != offset || (record.holders & kOwner) == 0) return std::nullopt;
  return Block{entry - 1, record.offset, record.capacity, record.zeroed};
}

void BlockAllocator::hand_over(BlockId id) { blocks_[id].holders |= kOtherSide; }

void BlockAllocator::owner_releases(BlockId id) { let_go(id, kOwner); }

bool BlockAllocator::other_side_returns(BlockId id) {
  if (id >= blocks_.size() || (blocks_[id].holders & kOtherSide) == 0) return false;
  let_go(id, kOtherSide);
  return true;
}

void BlockAllocator::let_go(BlockId id, Holder holder) {
  Record& record = blocks_[id];
  if ((record.holders & holder) == 0) return;
  record.holders = static_cast<std::uint8_t>(record.holders & ~holder);
  if (record.holders != kNobody) return;
  stats_.live_bytes -= record.capacity;
  --stats_.live_blocks;
  stats_.idle_bytes += record.capacity;
  record.freed_at = ++sequence_;
  const std::uint32_t list = size_class(record.capacity / kPageBytes).index;
  if (list >= idle_.size()) idle_.resize(list + 1);
  idle_[list].push_back(id);
  if (sequence_ % kPeakPeriod == 0) {
    earlier_peak_live_bytes_ = std::exchange(peak_live_bytes_, stats_.live_bytes);
  }
  trim_idle();
}

void BlockAllocator::trim_idle() {
  // What was live at the recent peak will be wanted again; as much again is slack.
  const std::uint64_t peak = std::max(peak_live_bytes_, earlier_peak_live_bytes_);
  const std::uint64_t keep = std::max(kIdleFloor, 2 * peak);
  if (stats_.idle_bytes > keep) evict_bytes(stats_.idle_bytes - keep);
}

bool BlockAllocator::trim_idle_to(std::uint64_t keep, std::uint64_t most) {
  if (stats_.idle_bytes <= keep) return false;
  evict_bytes(std::min(stats_.idle_bytes - keep, most));
  return stats_.idle_bytes > keep;
}

bool BlockAllocator::evict_bytes(std::uint64_t bytes) {
  const std::uint64_t before = stats_.idle_bytes;
  // Each list is in order of freeing, so what is coldest overall stands at the front of one. Fronts
  // are cut off once, at the end: one by one, thousands of blocks would cost their square.
  std::vector<std::size_t> evicted(idle_.size(), 0);
  while (before - stats_.idle_bytes < bytes) {
    std::size_t coldest = idle_.size();
    std::uint64_t freed_at = ~std::uint64_t{0};
    for (std::size_t list = 0; list < idle_.size(); ++list) {
      if (evicted[list] == idle_[list].size()) continue;
      const std::uint64_t at = blocks_[idle_[list][evicted[list]]].freed_at;
      if (at < freed_at) {
        freed_at = at;
        coldest = list;
      }
    }
    if (coldest == idle_.size()) break;
    evict(idle_[coldest][evicted[coldest]++]);
  }
  for (std::size_t list = 0; list < idle_.size(); ++list) {
    if (evicted[list] == 0) continue;
    const auto front = idle_[list].begin();
    idle_[list].erase(front, front + static_cast<std::ptrdiff_t>(evicted[list]));
  }
  return stats_.idle_bytes < before;
}

void BlockAllocator::evict(BlockId id) {
  Record& record = blocks_[id];
  stats_.idle_bytes -= record.capacity;
  stats_.mapped_bytes -= record.capacity;
  page_index_[(record.offset - begin_) / kPageBytes] = 0;
  // Carved blocks are promised to read as zero, so a range that could not be punched is lost to
  // reuse. The system refuses only what can no longer be paid for anyway.
  if (memory_.punch(record.offset, record.capacity)) return_range(record.offset, record.capacity);
  record = Record{};
  spare_ids_.push_back(id);
}

void BlockAllocator::return_range(std::uint64_t offset, std::uint64_t bytes) {
  auto next = ranges_.lower_bound(offset);
  if (next != ranges_.end() && offset + bytes == next->first) {
    bytes += next->second;
    next = ranges_.erase(next);
  }
  if (next != ranges_.begin()) {
    auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  ranges_.emplace(offset, bytes);
}

}  // namespace stook::shm
