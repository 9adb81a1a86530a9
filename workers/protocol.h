// What parent, fork server and workers share: the layout of the control memory, of job and result
// slots, and the messages on the fork server's socket.
//
// Everything here lies in memory that several processes map: trivially copyable or atomic, standard
// layout, fixed width, offsets instead of pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <type_traits>

#include "shm/arena.h"
#include "shm/atomics.h"
#include "shm/doorbell.h"
#include "workers/job_ring.h"

namespace stook::workers {

template <class T>
using Shared = shm::StdAtomics::Atomic<T>;

// ---------------------------------------------------------------- where bytes of an element lie

// A block that an element uses. Blocks of results lie in the worker's arena, blocks of arguments in
// the parent's.
struct BlockRef {
  std::uint64_t offset;
  std::uint64_t bytes;
  std::uint32_t id;
  std::uint32_t reserved;
};
static_assert(sizeof(BlockRef) == 24 && std::is_trivially_copyable_v<BlockRef>);

// ---------------------------------------------------------------- jobs: parent -> workers

inline constexpr std::uint64_t kJobInlineBytes = 1024;

// What an item of a job has cost: the worker that was at it died, or was killed because it took too
// long. Lies in the arguments' arena; written by the parent before the job is given free again.
struct Loss {
  std::uint32_t item;    // the last one that had begun
  std::uint32_t worker;  // the last one
  std::int32_t pid;
  std::int32_t status;     // as waitpid gives it
  std::uint32_t attempts;  // workers that this item has cost
  std::uint32_t flags;     // kTimedOut, kOutOfMemory

  static constexpr std::uint32_t kTimedOut = 1;
  static constexpr std::uint32_t kOutOfMemory = 2;  // its killer was at work meanwhile
};
static_assert(sizeof(Loss) == 24 && std::is_trivially_copyable_v<Loss>);

// Written by the parent before the job is produced; `claim` alone also by workers.
struct JobSlot {
  alignas(64) Shared<std::uint64_t> claim;  // see workers/job_ring.h
  std::uint64_t epoch;
  std::uint64_t position;
  std::uint32_t kind;           // the runner's business
  std::uint32_t block_count;    // BlockRefs at the start of the payload
  std::uint64_t payload_bytes;  // block refs included
  // 0: the payload is `payload` below. Else it lies at this offset of the arguments' arena.
  std::uint64_t external_offset;
  std::uint64_t losses_offset;  // of so many Losses, in the arguments' arena
  std::uint32_t losses_count;
  std::uint32_t reserved;
  std::byte payload[kJobInlineBytes];
};
static_assert(sizeof(JobSlot) == 64 + kJobInlineBytes && std::is_standard_layout_v<JobSlot>);

// ---------------------------------------------------------------- results: worker -> parent

inline constexpr std::uint64_t kResultSlotBytes = 1024;
inline constexpr std::uint64_t kResultInlineBytes = kResultSlotBytes - 64;

enum class ResultKind : std::uint32_t {
  kElement = 0,
  kError = 1,         // user code raised: the payload says what
  kStartupError = 2,  // the worker could not be set up: the payload says why; it belongs to no job
  kSkipped = 3,       // there is nothing to deliver; no payload
};

// The job of a result that belongs to none: kStartupError.
inline constexpr std::uint64_t kNoJob = ~std::uint64_t{0};

// A named segment that goes with an element: whoever drops the element unread is to unlink it, as
// nobody else will.
struct SegmentName {
  char text[32];  // with a zero at its end
};
static_assert(std::is_trivially_copyable_v<SegmentName>);

// One element, published by one release store (shm/ring.h). If block refs and payload do not fit
// inline, they lie in a block of their own, and the inline part is that block's BlockRef.
struct ResultSlot {
  std::uint64_t job;
  std::uint64_t payload_bytes;  // without block refs
  std::uint64_t handed_bytes;   // sum over all blocks, for the memory limit
  std::uint64_t array_bytes;    // of the arrays in the element, for statistics
  ResultKind kind;
  std::uint32_t block_count;  // without the envelope's own block
  std::uint32_t external;     // 1: see above
  std::uint32_t moved;        // leaves handed over without a copy
  std::uint32_t copied;       // leaves copied once
  std::uint32_t segments;     // SegmentNames at the end of the payload
  std::uint32_t failed;       // items that failed, and were left out or replaced
  std::uint32_t consumed;     // items that the job took, where that is not what it was dealt; or 0
  std::byte bytes[kResultInlineBytes];
};
static_assert(sizeof(ResultSlot) == kResultSlotBytes);
static_assert(std::is_trivially_copyable_v<ResultSlot> && std::is_standard_layout_v<ResultSlot>);

// ---------------------------------------------------------------- who sleeps, and what for

// A worker sleeps for one of these.
inline constexpr std::uint64_t kSleepsForJob = 1;
inline constexpr std::uint64_t kSleepsForMemory = 2;

// The parent sleeps until job `target` is published: exactly that one, or (fewer, later rings while
// elements arrive in quick succession) that one or any after it.
constexpr std::uint64_t kExact = std::uint64_t{1} << 63;
constexpr std::uint64_t parent_sleeps_until(std::uint64_t target, bool exact) {
  return (target + 1) | (exact ? kExact : 0);
}
constexpr bool parent_wants(std::uint64_t reason, std::uint64_t job) {
  const std::uint64_t target = (reason & ~kExact) - 1;
  return (reason & kExact) != 0 ? job == target : job >= target;
}

// ---------------------------------------------------------------- control memory

struct WorkerCell {
  shm::DoorbellWord<> sleep;  // the worker's doorbell
  // Bytes of blocks handed over so far. Written by the worker; by the parent once it is dead.
  alignas(shm::kIsolation) Shared<std::uint64_t> handed_bytes;
  // Payload of this job (+ 1) has been copied out of its slot. Written by the worker.
  Shared<std::uint64_t> taken_job;
  // How far the worker has come with a job of several items: see progress_word; or kRetired.
  // Written by the worker, before each item; read by the parent once it is dead, and set to 0 for
  // the successor.
  Shared<std::uint64_t> progress;
  // When the present item was begun (monotonic_nanoseconds); 0: none is. Where elements have a
  // time-out alone. Written by the worker, before `progress`, and 0 after each job; read by the
  // parent at any time, and set to 0 once the worker is dead.
  Shared<std::uint64_t> item_begun;
  // What the worker's allocator holds: see shm::BlockStats. Written by the worker with each
  // element and while it is idle; by the parent (0) once it is dead. Relaxed, one by one: figures
  // for people, who may see them a moment apart.
  alignas(shm::kIsolation) Shared<std::uint64_t> mapped_bytes;
  Shared<std::uint64_t> live_bytes;
  Shared<std::uint64_t> idle_bytes;
};

// How many items of a job were begun. The job's number tells a word of an earlier job.
inline constexpr std::uint64_t kMostItems = (std::uint64_t{1} << 24) - 1;
constexpr std::uint64_t progress_word(std::uint64_t job, std::uint64_t begun) {
  return job << 24 | begun;
}
constexpr std::uint64_t items_begun(std::uint64_t progress, std::uint64_t job) {
  return progress >> 24 == (job << 24) >> 24 ? progress & kMostItems : 0;
}
// A worker that ends because it has run as many jobs as it was to run.
inline constexpr std::uint64_t kRetired = ~std::uint64_t{0};
// One that ends because the pool is to end: it is not replaced.
inline constexpr std::uint64_t kDismissed = kRetired - 1;

struct ControlHeader {
  std::uint64_t magic;
  std::uint32_t worker_count;
  std::uint32_t items_are_told;   // 1: workers tell which item of a job they are at
  std::uint64_t element_timeout;  // nanoseconds; 0: none, and workers look at no clock
  std::uint64_t job_capacity;     // power of two
  std::uint64_t result_capacity;  // power of two, per worker
  std::uint64_t memory_limit;     // bytes
  std::uint64_t arena_bytes;
  std::uint64_t arguments_bytes;

  JobRingWords<> jobs;
  // Jobs below this were delivered or given up. Written by the parent; relaxed: it decides only
  // whether a job may run although memory is short, and how long a worker holds segments for the
  // parent, which has opened them by system calls before.
  alignas(shm::kIsolation) Shared<std::uint64_t> delivered;
  shm::DoorbellWord<> parent;
  // Bytes of released blocks. Any thread of the parent.
  alignas(shm::kIsolation) Shared<std::uint64_t> released_bytes;
  // Not 0: some worker may sleep for a job (for memory). Set by workers before they announce it,
  // cleared by the parent before it rings them.
  alignas(shm::kIsolation) Shared<std::uint64_t> job_wanted;
  alignas(shm::kIsolation) Shared<std::uint64_t> memory_wanted;
};
static_assert(std::is_standard_layout_v<ControlHeader>);

inline constexpr std::uint64_t kControlMagic = 0x31306B6F6F7473ULL;  // "stook01"

// The clock of time-outs, the same in all processes of a machine.
inline std::uint64_t monotonic_nanoseconds() noexcept {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(time.tv_nsec);
}

// Control memory: header, worker cells, job slots.
struct ControlLayout {
  std::uint32_t worker_count = 0;
  std::uint64_t job_capacity = 0;

  std::uint64_t cells_offset() const { return shm::round_up(sizeof(ControlHeader), 128); }
  std::uint64_t jobs_offset() const {
    return shm::round_up(cells_offset() + worker_count * sizeof(WorkerCell), shm::kPageBytes);
  }
  std::uint64_t total_bytes() const { return jobs_offset() + job_capacity * sizeof(JobSlot); }
};

// A process's view of the control memory.
class Control {
 public:
  Control() = default;
  Control(std::byte* base, const ControlLayout& layout) : base_(base), layout_(layout) {}

  ControlHeader& header() const { return *reinterpret_cast<ControlHeader*>(base_); }
  WorkerCell& cell(std::uint32_t worker) const {
    return reinterpret_cast<WorkerCell*>(base_ + layout_.cells_offset())[worker];
  }
  JobSlot* jobs() const { return reinterpret_cast<JobSlot*>(base_ + layout_.jobs_offset()); }
  JobSlot& job(std::uint64_t number) const { return jobs()[number & (layout_.job_capacity - 1)]; }
  std::uint32_t worker_count() const { return layout_.worker_count; }
  std::uint64_t job_capacity() const { return layout_.job_capacity; }

  // Bytes of blocks that were handed over and not released. Reads one word per worker.
  std::uint64_t outstanding_bytes() const {
    std::uint64_t handed = 0;
    for (std::uint32_t worker = 0; worker < layout_.worker_count; ++worker) {
      handed += cell(worker).handed_bytes.load(std::memory_order_relaxed);
    }
    const std::uint64_t released = header().released_bytes.load(std::memory_order_relaxed);
    // The words are read one after another: a release may be seen before its hand-over.
    return handed > released ? handed - released : 0;
  }

 private:
  std::byte* base_ = nullptr;
  ControlLayout layout_;
};

// ---------------------------------------------------------------- the fork server's socket

enum class MessageType : std::uint32_t {
  kStart = 1,    // parent -> server; fds: control, arguments' arena, parent's doorbell
  kSpawn = 2,    // parent -> server; fds: arena, worker's doorbell
  kSpawned = 3,  // server -> parent: `pid`; fds: pidfd
  kExited = 4,   // server -> parent: `status` as waitpid gives it
  kFailed = 5,   // server -> parent: `status` is errno of the call that failed
};

struct Message {
  MessageType type;
  std::uint32_t worker;
  std::uint32_t incarnation;
  std::int32_t pid;
  std::int32_t status;
  std::uint32_t reserved;
};
static_assert(sizeof(Message) == 24 && std::is_trivially_copyable_v<Message>);

}  // namespace stook::workers
