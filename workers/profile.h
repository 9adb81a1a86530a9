// Where a worker's time goes, and why it copies: figures in memory that the parent reads at any
// time, also after the worker's death. Only there with enable_profiling.
//
// A cell has one writer at a time: the thread of a worker that runs jobs, or whoever holds the GIL
// of the process that made the memory. Readers see words a moment apart; all are relaxed, except
// those that publish a text or an event behind them. An earlier worker's figures are counted on by
// its successor.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "workers/protocol.h"

namespace stook::workers {

// What a worker without a job waits for.
enum class ProfileWait : std::uint32_t {
  kNone = 0,
  kMemory = 1,    // elements handed over hold as much as they may
  kJob = 2,       // nothing is to be done: the source is slow, or the pass comes to its end
  kConsumer = 3,  // the window is full, and the consumer does not ask
  kOrder = 4,     // the window is full, and the consumer waits for a slower element before
};
inline constexpr std::uint32_t kProfileWaits = 5;

// Stages with a meaning of their own; the transforms' follow.
enum class ProfileStage : std::uint32_t {
  kElement = 0,   // all of user code for one element
  kEncode = 1,    // writing an element down, copies included
  kHandOver = 2,  // publishing it
  kConsumer = 3,  // the consumer waits for an element
  kSource = 4,
  kCollate = 5,
  kTransforms = 6,
};
inline constexpr std::uint32_t kProfileStages = 64;      // further transforms share the last one
inline constexpr std::uint32_t kProfileWaitEvent = 100;  // + ProfileWait
inline constexpr std::uint32_t kProfileReasons = 24;     // bindings/copy_reasons.h
inline constexpr std::uint64_t kProfileEvents = 8192;

struct ProfileWaitWords {
  Shared<std::uint64_t> count;
  Shared<std::uint64_t> nanoseconds;
};

struct ProfileStageWords {
  Shared<std::uint64_t> calls;
  Shared<std::uint64_t> nanoseconds;
  Shared<std::uint64_t> bytes;  // of what it returned
};

struct ProfileReasonWords {
  Shared<std::uint64_t> leaves;
  Shared<std::uint64_t> bytes;
  // 1: the rest is written, and stays (release, acquire).
  Shared<std::uint64_t> has_example;
  std::uint64_t references;
  char path[128];  // of the first leaf, in the element; with a zero at its end
  char type[64];   // of what is in the way
};

struct ProfileEvent {
  // Number of the event + 1, written last (release); 0 while it is written.
  Shared<std::uint64_t> number;
  Shared<std::uint64_t> code;  // a stage, or a wait; the thread's id in the upper half
  Shared<std::uint64_t> begin;
  Shared<std::uint64_t> nanoseconds;
  Shared<std::uint64_t> epoch;
  Shared<std::uint64_t> position;
};

struct alignas(shm::kPageBytes) ProfileCell {
  Shared<std::uint64_t> pid;      // of the present worker; 0: none yet
  Shared<std::uint64_t> started;  // when it was ready for jobs (monotonic_nanoseconds)
  // A wait under way: its ProfileWait, and since when.
  Shared<std::uint64_t> waits_for;
  Shared<std::uint64_t> waits_since;
  ProfileWaitWords waits[kProfileWaits];
  ProfileStageWords stages[kProfileStages];
  ProfileReasonWords reasons[kProfileReasons];
  Shared<std::uint64_t> events;  // so many were written: the last kProfileEvents are there
  ProfileEvent ring[kProfileEvents];

  // The id of this thread, once it was asked for.
  static inline thread_local std::uint64_t thread_ = 0;

  static void add(Shared<std::uint64_t>& word, std::uint64_t value) noexcept {
    word.store(word.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
  }

  void add_event(std::uint32_t code, std::uint64_t begin, std::uint64_t nanoseconds,
                 std::uint64_t epoch, std::uint64_t position) noexcept {
    const std::uint64_t number = events.load(std::memory_order_relaxed);
    ProfileEvent& event = ring[number % kProfileEvents];
    event.number.store(0, std::memory_order_relaxed);
    // A reader that sees any of what follows sees, when it looks again, that it is being written.
    std::atomic_thread_fence(std::memory_order_release);
    if (thread_ == 0) thread_ = static_cast<std::uint64_t>(::gettid());
    event.code.store(thread_ << 32 | code, std::memory_order_relaxed);
    event.begin.store(begin, std::memory_order_relaxed);
    event.nanoseconds.store(nanoseconds, std::memory_order_relaxed);
    event.epoch.store(epoch, std::memory_order_relaxed);
    event.position.store(position, std::memory_order_relaxed);
    // SYNC(profile.event): released here, acquired by whoever reads the ring.
    event.number.store(number + 1, std::memory_order_release);
    events.store(number + 1, std::memory_order_relaxed);
  }

  void add_stage(std::uint32_t stage, std::uint64_t calls, std::uint64_t begin, std::uint64_t end,
                 std::uint64_t bytes, std::uint64_t epoch, std::uint64_t position) noexcept {
    ProfileStageWords& words = stages[stage < kProfileStages ? stage : kProfileStages - 1];
    add(words.calls, calls);
    add(words.nanoseconds, end - begin);
    if (bytes != 0) add(words.bytes, bytes);
    add_event(stage, begin, end - begin, epoch, position);
  }

  void begin_wait(ProfileWait wait) noexcept {
    waits_since.store(monotonic_nanoseconds(), std::memory_order_relaxed);
    waits_for.store(static_cast<std::uint64_t>(wait), std::memory_order_relaxed);
  }

  void end_wait() noexcept {
    const std::uint64_t wait = waits_for.load(std::memory_order_relaxed);
    const std::uint64_t since = waits_since.load(std::memory_order_relaxed);
    const std::uint64_t nanoseconds = monotonic_nanoseconds() - since;
    waits_for.store(0, std::memory_order_relaxed);
    add(waits[wait].count, 1);
    add(waits[wait].nanoseconds, nanoseconds);
    add_event(kProfileWaitEvent + static_cast<std::uint32_t>(wait), since, nanoseconds, 0, 0);
  }

  // Called by a worker before its first job.
  void begin_worker() noexcept {
    thread_ = 0;                                    // that of the process this one was forked from
    waits_for.store(0, std::memory_order_relaxed);  // its predecessor may have died in a wait
    started.store(monotonic_nanoseconds(), std::memory_order_relaxed);
    pid.store(static_cast<std::uint64_t>(::getpid()), std::memory_order_relaxed);
  }
};
static_assert(std::is_standard_layout_v<ProfileCell>);

struct ProfileHeader {
  std::uint64_t window;  // jobs that may be under way; written by the parent before workers start
};

}  // namespace stook::workers
