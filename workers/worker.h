// A worker process: claims jobs, has them run, publishes results.
//
// One thread calls run() and everything the runner calls back; other threads of the process only
// touch the arena. Never waits but for a job (and for memory before a job is claimed): a claimed
// job runs to its end, so the parent can always count on it or on the worker's death.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "shm/ring.h"
#include "workers/profile.h"
#include "workers/protocol.h"
#include "workers/worker_arena.h"

namespace stook::workers {

// What a worker is born with. The descriptors are its own.
struct WorkerBirth {
  std::uint32_t index = 0;
  std::uint32_t incarnation = 0;
  std::uint32_t worker_count = 0;
  shm::FileDescriptor control;
  shm::FileDescriptor arguments;
  shm::FileDescriptor arena;
  shm::FileDescriptor parent_bell;
  shm::FileDescriptor own_bell;
};

// A claimed job. `payload` is the worker's copy, or lies in the arguments' arena.
struct Job {
  std::uint64_t number;
  std::uint64_t epoch;
  std::uint64_t position;
  std::uint32_t kind;
  std::span<const BlockRef> blocks;
  std::span<const std::byte> payload;
  std::span<const Loss> losses;  // in the arguments' arena
};

// What the runner made of a job.
struct ResultDraft {
  std::uint64_t job = 0;
  ResultKind kind = ResultKind::kElement;
  std::span<const BlockRef> moved_blocks;  // an array of the worker's own still holds these
  std::span<const BlockRef> made_blocks;   // allocated for this element alone
  std::span<const std::byte> payload;
  std::uint64_t array_bytes = 0;
  std::uint32_t moved = 0;
  std::uint32_t copied = 0;
  std::uint32_t segments = 0;  // SegmentNames at the end of the payload
  std::uint32_t failed = 0;    // as in ResultSlot
  std::uint32_t consumed = 0;
};

class Worker;

// Runs user code; implemented by the binding layer.
class JobRunner {
 public:
  virtual ~JobRunner() = default;
  // Must end in exactly one successful Worker::publish for this job.
  virtual void run(const Job& job, Worker& worker) = 0;
  // Around every sleep, so that other threads of the worker can run.
  virtual void before_sleep() = 0;
  virtual void after_sleep() = 0;
};

class Worker {
 public:
  // After this long without a job a worker gives idle memory back, and as often it looks again for
  // blocks that the parent returned meanwhile.
  static constexpr std::chrono::milliseconds kIdlePause{1000};

  // Throws shm::Error.
  explicit Worker(WorkerBirth birth, std::chrono::milliseconds idle_pause = kIdlePause);

  // Never returns by itself: the worker ends when the fork server or its own user code ends it.
  [[noreturn]] void run(JobRunner& runner);

  // False if the arena cannot hold the envelope; nothing was published then and `draft` may be
  // replaced by a smaller one (an error). On success made blocks belong to the parent alone.
  bool publish(const ResultDraft& draft);

  // Read by the parent if this process dies: how many items of a job were begun, and that this
  // worker ends as it was told to.
  void set_progress(std::uint64_t job, std::uint64_t begun) noexcept {
    control_.cell(birth_.index)
        .progress.store(progress_word(job, begun), std::memory_order_relaxed);
  }
  // The runner is about to begin item `item`, or goes on to it again; a job is at its item 0 when
  // it starts. If this process dies, or takes longer than the time-out before the next call or the
  // job's end, it is this item's doing. Costs nothing where the parent has not asked for it.
  void begin_item(std::uint64_t item) noexcept {
    if (items_are_told_) tell_item(item);
  }
  void set_end(std::uint64_t retired_or_dismissed) noexcept {
    control_.cell(birth_.index).progress.store(retired_or_dismissed, std::memory_order_relaxed);
  }

  // Notes there what this worker waits for, from now on; `window`: jobs that may be under way. The
  // cell must live as long as this.
  void set_profile(ProfileCell& cell, std::uint64_t window) noexcept;

  WorkerArena& arena() noexcept { return *arena_; }
  // True in a process that user code forked off this worker: it must not touch anything shared.
  bool in_forked_child() const noexcept { return arena_->in_forked_child(); }
  std::uint32_t index() const noexcept { return birth_.index; }
  std::uint32_t incarnation() const noexcept { return birth_.incarnation; }
  std::uint32_t worker_count() const noexcept { return birth_.worker_count; }
  const shm::Mapping& arguments() const noexcept { return arguments_; }
  std::uint64_t memory_limit() const noexcept { return control_.header().memory_limit; }
  // Jobs below this were delivered or given up.
  std::uint64_t delivered() const noexcept {
    return control_.header().delivered.load(std::memory_order_relaxed);
  }

 private:
  enum class Lack { kJob, kMemory };

  std::optional<std::uint64_t> claim(Lack& lack);
  std::uint64_t wait_for_job(JobRunner& runner);
  // Sleeps until the bell rings or a signal arrives. After `pause` milliseconds of that gives idle
  // memory back, and sets how long it sleeps before the next look; -1: for ever. Without a look at
  // the clock: a ring or a signal begins the pause anew.
  void sleep_until_rung(int& pause);
  ProfileWait what_is_lacking(Lack lack) const noexcept;
  void publish_memory();
  void tell_item(std::uint64_t item) noexcept;
  void take_payload(std::uint64_t number, Job& job);
  void wake_parent_for(std::uint64_t job);

  WorkerBirth birth_;
  std::chrono::milliseconds idle_pause_;
  // Watches the own bell, edge-triggered: a sleep that may time out is then one system call, as
  // the counter never needs to be read.
  shm::FileDescriptor bell_watch_;
  shm::Mapping control_memory_;
  Control control_;
  bool items_are_told_ = false;
  bool has_timeout_ = false;
  std::uint64_t job_ = 0;  // that runs
  shm::Mapping arguments_;
  std::unique_ptr<WorkerArena> arena_;
  std::optional<shm::RingWriter<ResultSlot>> results_;
  std::uint64_t handed_bytes_ = 0;
  std::vector<std::byte> payload_;  // copy of the current job's inline payload
  ProfileCell* profile_ = nullptr;
  std::uint64_t profile_window_ = 0;
};

// The arena of worker `index`, as `control` describes it.
shm::ArenaLayout arena_layout(const ControlHeader& control);

}  // namespace stook::workers
