// Threads that give memory back, so that nobody who drops an array waits for the system to do it.
//
// Unmapping 100 MB takes milliseconds. Whoever lets go of such a thing wraps it in a `Reclaimable`
// and submits it; one of the reclaim threads reclaims it. Where there is no thread, or the queue is
// full, the caller does it itself: nothing is lost and nothing waits for room.
//
// One per process, off until configured. Any thread may call anything, from destructors too:
// submitting takes a mutex for a few instructions, allocates nothing and runs no code of others.
// The threads block all signals and know no GIL. A forked child has no threads and an empty queue
// of its own; what its parent had queued stays the parent's.
#pragma once

#include <chrono>
#include <cstdint>

namespace stook::shm {

// Something to be given back once, then gone.
class Reclaimable {
 public:
  // All of it, at leisure. Frees the object.
  virtual void reclaim() noexcept = 0;
  // At the process's end: only what would outlive the process, such as a name. Frees nothing.
  virtual void reclaim_at_exit() noexcept = 0;

 protected:
  ~Reclaimable() = default;
};

struct ReclaimerStats {
  std::uint32_t threads = 0;
  std::uint32_t max_outstanding = 0;
  std::uint64_t outstanding = 0;  // submitted to the threads and not done yet
  std::uint64_t done_by_threads = 0;
  std::uint64_t done_by_callers = 0;  // no thread, or no room
  std::uint64_t failures = 0;         // see count_reclaim_failure
};

inline constexpr std::uint32_t kMostReclaimThreads = 256;
inline constexpr std::uint32_t kMostOutstanding = std::uint32_t{1} << 20;

// Starts `threads` threads (at most 256), or changes their number; at most `max_outstanding` things
// (1 to 2^20) wait for or are with them. 0 threads ends them once they have done what was
// submitted. Waits for threads that end. Throws Error(kSystem), and Error(kInvalidArgument), also
// after finish_reclaimer; then nothing has changed.
void configure_reclaimer(std::uint32_t threads, std::uint32_t max_outstanding);

// Takes over `thing`: a thread reclaims it, or this call does.
void submit_reclaim(Reclaimable* thing) noexcept;

// Whether submit_reclaim may find a thread: worth wrapping something for it.
bool reclaimer_has_threads() noexcept;

// Waits until nothing is outstanding, at most so long. True if so.
bool flush_reclaimer(std::chrono::milliseconds most) noexcept;

// At the process's end: flushes for at most so long, then takes what is still queued away from the
// threads and does `reclaim_at_exit` of it. What is submitted later, the caller does.
void finish_reclaimer(std::chrono::milliseconds most) noexcept;

// The system refused to take something back. Counted; the first is also written to standard error.
void count_reclaim_failure(const char* what, int system_errno) noexcept;

ReclaimerStats reclaimer_stats() noexcept;

}  // namespace stook::shm
