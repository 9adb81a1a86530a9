#include "workers/worker_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "shm/fork_guard.h"
#include "shm/memory_limit.h"

namespace stook::workers {

namespace {

// Idle bytes that a worker without work keeps: this, or a part of what is live if that is more. The
// part is small: a live block may be 1.38 times as large as its array (an eighth for its size
// class, two classes for a warm block), and all of it is to stay below 1.5 times.
constexpr std::uint64_t kIdleKept = std::uint64_t{1} << 20;
constexpr std::uint64_t kLivePerIdle = 16;
// Bytes given back in one go. Other threads of the worker cannot allocate meanwhile, and a job that
// arrives waits for it.
constexpr std::uint64_t kGiveBackStep = std::uint64_t{16} << 20;

// The arena of this process, for the hook that runs in its forked children. A worker has one.
struct {
  void* base = nullptr;
  std::size_t bytes = 0;
  int fd = -1;
} own_arena;

}  // namespace

WorkerArena::WorkerArena(shm::FileDescriptor fd, const shm::ArenaLayout& layout)
    : fd_(std::move(fd)),
      layout_(layout),
      memory_(fd_.get(), layout.total_bytes, shm::Access::kReadWrite),
      generation_(shm::fork_generation()),
      allocator_(memory_, layout.first_block_offset(), layout.total_bytes, &shm::memory_left) {
  own_arena = {memory_.data(), memory_.size(), fd_.get()};
  shm::set_child_after_fork(&remap_private_in_child);
}

WorkerArena::~WorkerArena() { own_arena = {}; }

void WorkerArena::remap_private_in_child() {
  if (own_arena.base == nullptr) return;
  ::mmap(own_arena.base, own_arena.bytes, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, own_arena.fd, 0);
}

bool WorkerArena::in_forked_child() const noexcept { return generation_ != shm::fork_generation(); }

void WorkerArena::harvest() {
  shm::harvest_blocks(shm::arena_header(memory_).returned, allocator_.block_count(),
                      [this](shm::BlockId id) { allocator_.other_side_returns(id); });
}

std::optional<WorkerArena::Allocation> WorkerArena::allocate(std::uint64_t bytes) {
  return allocate_up_to(bytes, shm::kMaxBlocks);
}

std::optional<WorkerArena::Allocation> WorkerArena::allocate_array(std::uint64_t bytes) {
  return allocate_up_to(bytes, kMaxArrayBlocks);
}

std::optional<WorkerArena::Allocation> WorkerArena::allocate_up_to(std::uint64_t bytes,
                                                                   std::uint64_t most_blocks) {
  if (in_forked_child()) return std::nullopt;  // its copy of the mutex may be locked for ever
  const std::lock_guard lock(mutex_);
  harvest();
  if (allocator_.stats().live_blocks >= most_blocks) return std::nullopt;
  const auto block = allocator_.allocate(bytes);
  if (!block) return std::nullopt;
  return Allocation{memory_.data() + block->offset, *block};
}

void WorkerArena::free(void* pointer) noexcept {
  if (in_forked_child()) return;
  const std::lock_guard lock(mutex_);
  if (const auto block = allocator_.find(offset_of(pointer))) {
    allocator_.owner_releases(block->id);
  }
}

std::optional<shm::Block> WorkerArena::find(const void* pointer) {
  if (!contains(pointer) || in_forked_child()) return std::nullopt;
  const std::lock_guard lock(mutex_);
  return allocator_.find(offset_of(pointer));
}

void WorkerArena::hand_over(std::span<const BlockRef> blocks) {
  const std::lock_guard lock(mutex_);
  for (const BlockRef& block : blocks) allocator_.hand_over(block.id);
}

void WorkerArena::release_own(std::span<const BlockRef> blocks) {
  const std::lock_guard lock(mutex_);
  for (const BlockRef& block : blocks) allocator_.owner_releases(block.id);
}

bool WorkerArena::give_back_idle() {
  const std::lock_guard lock(mutex_);
  harvest();
  const std::uint64_t keep = std::max(kIdleKept, allocator_.stats().live_bytes / kLivePerIdle);
  return allocator_.trim_idle_to(keep, kGiveBackStep);
}

std::uint64_t WorkerArena::live_blocks() {
  const std::lock_guard lock(mutex_);
  return allocator_.stats().live_blocks;
}

shm::BlockStats WorkerArena::stats() {
  const std::lock_guard lock(mutex_);
  return allocator_.stats();
}

}  // namespace stook::workers
