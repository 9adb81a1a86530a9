// The parent's side: starts workers, deals jobs, collects results, notices deaths.
//
// One thread at a time calls it (the binding layer holds a mutex around every call); only the
// release of leased blocks comes from any thread, and does not pass through here. Nothing but
// wait() and close() blocks. Waiting happens without the caller's language lock.
#pragma once

#include <sys/types.h>
#include <csignal>

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "shm/leased_arena.h"
#include "shm/ring.h"
#include "workers/channel.h"
#include "workers/manager_memory.h"
#include "workers/protocol.h"
#include "workers/socket.h"

namespace stook::workers {

struct ManagerOptions {
  std::uint32_t worker_count = 1;
  std::uint32_t per_worker_buffer_size = 1;
  std::uint64_t memory_limit = 0;  // bytes
  bool restart_workers = true;     // run a lost job again, at most `max_restarts` times
  std::uint32_t max_restarts = 2;
  // Jobs have no order among them: one that takes long holds no other back, and the window counts
  // those under way alone. They are polled for and taken unordered.
  bool any_order = false;
  // No worker is started but by add_worker().
  bool start_on_demand = false;
  // A job that was lost for good goes to another worker with what it has cost (Job::losses), for
  // its runner to leave that item out; it has no outcome kWorkerDied or kTimedOut, unless one item
  // is lost for the third time, or the arguments' arena has no room for the list. Not with
  // any_order.
  bool report_losses = false;
  // A worker that is at one item for longer is killed, and that item is lost for good. Whoever
  // polls or waits looks. 0: for ever. Not with any_order.
  std::chrono::nanoseconds element_timeout{0};
  // What time it is for who kills; tests set another. Workers look at the clock itself.
  std::uint64_t (*clock)() noexcept = &monotonic_nanoseconds;
};

// A job as the parent gives it out.
struct JobOrder {
  std::uint64_t epoch = 0;
  std::uint64_t position = 0;
  std::uint32_t kind = 0;
  std::span<const BlockRef> blocks;    // in the arguments' arena; the manager frees them
  std::span<const std::byte> payload;  // copied
  // Only this worker, or its successor, runs the job. Not with any_order, where a worker may end
  // for good.
  std::optional<std::uint32_t> worker;
};

enum class OutcomeKind {
  kElement,
  kError,         // user code raised
  kWorkerDied,    // the worker died while it ran the job
  kSkipped,       // there is nothing to deliver
  kTimedOut,      // the worker was killed, because it was at one item for too long
  kStartupError,  // a worker could not be set up; nothing else will come
};

// What became of a job. Spans are valid until the next call of the manager; whoever takes an
// outcome owns one lease of each of its blocks.
struct Outcome {
  OutcomeKind kind = OutcomeKind::kElement;
  std::uint64_t job = 0;  // as produce() numbered it
  std::uint64_t epoch = 0;
  std::uint64_t position = 0;
  std::uint32_t worker = 0;
  shm::LeasedArena* arena = nullptr;
  std::span<const BlockRef> blocks;
  std::span<const std::byte> payload;
  std::uint64_t array_bytes = 0;  // of the arrays in it
  std::uint32_t moved = 0;
  std::uint32_t copied = 0;
  std::uint32_t segments = 0;  // SegmentNames at the end of the payload
  std::uint32_t failed = 0;    // of the job's items: left out or replaced
  std::uint32_t consumed = 0;  // items it took, where that is not what it was dealt; or 0
  // kWorkerDied, kTimedOut; `payload` is then the job's, if that has no blocks:
  pid_t pid = 0;
  int status = 0;              // as waitpid gives it
  std::uint32_t attempts = 0;  // workers that the item has cost, or if nobody tells it the job
  bool out_of_memory = false;  // the kernel's out-of-memory killer was at work meanwhile
  std::uint64_t begun = 0;     // of the job's items, as the worker counted them
};

// A worker that ended although nobody had asked it to.
struct Death {
  std::uint32_t worker = 0;
  pid_t pid = 0;
  int status = 0;  // as waitpid gives it
};

struct ManagerStats {
  std::uint64_t restarts = 0;
  std::uint64_t outstanding_bytes = 0;  // in blocks handed over and not yet released
};

class Manager {
 public:
  // Takes over `socket` (to the fork server) and the child `server`. Throws shm::Error.
  Manager(const ManagerOptions& options, shm::FileDescriptor socket, pid_t server);
  // As close().
  ~Manager();
  Manager(const Manager&) = delete;
  Manager& operator=(const Manager&) = delete;

  // -------------------------------------------------------------- jobs
  bool can_produce();
  // Returns the job's number. Throws Error(kInvalidArgument) for a worker that cannot be.
  std::uint64_t produce(const JobOrder& order);
  // Rings workers that sleep although there are jobs. produce() rings for some of many; who does
  // not wait() for their results himself asks for the others.
  void ring_workers() { ring_for_jobs(true); }
  // With any_order: takes back a job that no worker has claimed; it has no outcome. False if one
  // has, or if it is over.
  bool cancel(std::uint64_t number);
  // A worker has it, and it is not yet ready here.
  bool is_claimed(std::uint64_t number) const;
  // Room for arguments that do not fit a job slot; nothing if there is none. Given back through
  // JobOrder::blocks or free_arguments.
  struct ArgumentBlock {
    std::byte* data;
    BlockRef ref;
  };
  std::optional<ArgumentBlock> allocate_arguments(std::uint64_t bytes);
  void free_arguments(std::span<const BlockRef> blocks);

  // -------------------------------------------------------------- results
  enum class State {
    kReady,    // take() has something
    kPending,  // something is under way
    kIdle,     // nothing is
  };
  // Looks, without blocking. Throws Error(kBroken) when the fork server is gone.
  State poll(bool ordered);
  // True if the side channel was found to have something while the caller did not wait; once.
  bool take_side_channel_news() noexcept { return std::exchange(side_channel_news_, false); }
  Outcome take(bool ordered);
  std::uint64_t under_way() const noexcept { return in_flight_; }
  // True if elements that the user keeps should no longer stay in shared memory.
  bool should_copy_out(const Outcome& outcome) const;

  enum class WaitEnd { kProgress, kInterrupted, kSideChannel, kTimeOut };
  // Sleeps until something is ready (ordered: the next element), a signal arrives or the side
  // channel is readable. `signals_checked` says that the caller blocked signals and looked at its
  // flags, so that one which arrives now ends the sleep; without it the sleep is bounded.
  WaitEnd wait(bool ordered, const sigset_t* unblocked);
  // Ends a wait() or sleep() that goes on in another thread. Any thread.
  void wake() noexcept;
  // The three parts of wait(), for who lets others call this object while he sleeps: the first and
  // the last as every call, the sleep itself without whatever keeps calls apart. close() must not
  // come before the sleep is over.
  struct Sleep {
    bool needed = false;  // false: something is ready
    bool bounded = false;
    std::int64_t nanoseconds = 0;  // how long at most, if bounded
    int epoll = -1;
  };
  struct Waking {
    int count = 0;  // of events; or -1, and
    int error = 0;  // errno
    bool timed_out = false;
    std::uint32_t events = 0;
  };
  // Without `may_coalesce` the first result ends the sleep, and none is bounded: for who cannot
  // look again by himself.
  Sleep begin_sleep(bool ordered, bool signals_blocked, bool may_coalesce = true);
  static Waking sleep(const Sleep& sleep, const sigset_t* unblocked) noexcept;
  WaitEnd end_sleep(const Waking& waking);
  // Readable when something may have come for who called begin_sleep() and found nothing.
  int descriptor() const noexcept { return epoll_.get(); }
  // A descriptor of the caller's to watch while waiting.
  void watch_side_channel(int fd);

  // Gives up all jobs under way; their results are dropped when they come.
  void abandon();

  // Ends every process at once. Leased blocks stay valid. Idempotent; in a forked child of the
  // process that made this, only forgets.
  void close() noexcept;
  bool is_open() const noexcept { return socket_.is_open(); }
  bool in_forked_child() const noexcept;

  // With start_on_demand: starts one of the workers that have none yet. False if all have.
  bool add_worker();
  // Workers that ended unasked since the last call. Filled with any_order alone.
  std::vector<Death> take_deaths() { return std::exchange(deaths_, {}); }
  ManagerStats stats() const;
  // One per worker; after close() they tell of leased blocks alone.
  std::vector<WorkerMemory> memory() const;
  // The same after this is gone.
  std::shared_ptr<LeaseLedger> ledger() const noexcept { return ledger_; }
  std::uint32_t worker_count() const noexcept { return options_.worker_count; }
  std::chrono::nanoseconds element_timeout() const noexcept { return options_.element_timeout; }
  std::uint64_t window() const noexcept { return window_; }
  std::vector<pid_t> worker_pids() const;
  // Workers that were asked for and have not ended; some may have no process yet.
  std::uint32_t workers_alive() const;
  pid_t server_pid() const noexcept { return server_; }
  std::uint64_t arena_bytes() const;

 private:
  enum class JobState : std::uint8_t { kFree, kUnderWay, kReady, kDelivered };
  struct JobRecord {
    std::uint64_t number = 0;
    JobState state = JobState::kFree;
    std::uint64_t epoch = 0;
    std::uint64_t position = 0;
    std::uint64_t claimants = kUnclaimed;  // or the worker that it is bound to
    // Of each worker that died of it: how many items it had begun. None of those that are lost.
    std::vector<std::uint64_t> deaths;
    std::vector<Loss> losses;
    std::uint32_t losses_block = 0;  // of `arguments`, if there are losses
    std::vector<BlockRef> arguments;
    // Once ready:
    Outcome outcome;
    ResultSlot slot;  // the parent's copy
    std::vector<BlockRef> blocks;
    std::vector<std::byte> external_payload;
  };
  struct WorkerRecord {
    std::uint32_t incarnation = 0;
    pid_t pid = 0;
    bool alive = false;
    bool has_published = false;
    bool ended = false;  // and is not replaced
    // It was killed for the item that it had begun then; 0: it was not.
    std::uint64_t overdue = 0;
    shm::FileDescriptor pidfd;
    shm::LeasedArena* arena = nullptr;
    shm::FileDescriptor arena_fd;  // asked how much memory the arena costs
    std::shared_ptr<WorkerReleases> releases;
    std::optional<shm::RingReader<ResultSlot>> results;
    std::uint64_t received_bytes = 0;  // handed over and seen here, over all incarnations
  };
  struct StaleJob {
    std::uint32_t worker;
    std::vector<BlockRef> arguments;
  };

  // What an epoll event is about; bits of Waking::events.
  enum : std::uint32_t { kBellEvent = 1, kServerEvent = 2, kSideEvent = 4, kTimerEvent = 8 };

  static bool is_occupied(const JobRecord& job) {
    return job.state == JobState::kUnderWay || job.state == JobState::kReady;
  }
  JobRecord& record(std::uint64_t job) { return jobs_[job & (jobs_.size() - 1)]; }
  void spawn(std::uint32_t worker);
  void drain(std::uint32_t worker);
  void receive(std::uint32_t worker, const ResultSlot& slot);
  bool lease_blocks(std::uint32_t index, const ResultSlot& slot, std::vector<BlockRef>& blocks,
                    std::vector<std::byte>& external);
  void release_ready(JobRecord& record);
  bool awaited_is_ready(bool ordered);
  void handle_messages();
  void look_for_news();
  void on_exit(std::uint32_t worker, int status);
  void lose_job(std::uint64_t job, std::uint32_t worker, int status);
  void give_free(JobRecord& record);
  bool was_out_of_memory();
  bool add_loss(JobRecord& record, const Loss& loss);
  void kill_overdue();
  std::uint64_t first_overdue_at(std::uint64_t now) const;
  void arm_timer();
  void finish(JobRecord& record, Outcome outcome);
  void advance_delivered();
  bool slot_is_free(std::uint64_t job);
  void ring_for_jobs(bool now);
  bool ring_for_bound_jobs(std::uint64_t lowest);
  [[noreturn]] void fail_broken(const std::string& what);

  ManagerOptions options_;
  std::uint64_t window_;
  std::uint64_t generation_;
  shm::FileDescriptor socket_;
  pid_t server_;
  shm::FileDescriptor server_pidfd_;
  shm::FileDescriptor epoll_;
  shm::FileDescriptor bell_;   // workers ring it
  shm::FileDescriptor timer_;  // with a time-out: rings when the next item may be overdue
  std::uint64_t timer_at_ = 0;
  std::uint64_t overdue_from_ = 0;  // until then no item is
  std::shared_ptr<Channel> channel_;
  std::shared_ptr<LeaseLedger> ledger_;
  shm::ArenaLayout arena_layout_;
  shm::Mapping arguments_;
  std::unique_ptr<shm::BlockAllocator> argument_blocks_;
  std::vector<WorkerRecord> workers_;
  std::vector<JobRecord> jobs_;      // capacity of the job ring
  std::deque<std::uint64_t> ready_;  // unordered: in order of arrival
  std::unordered_map<std::uint64_t, StaleJob> stale_;
  std::uint64_t produced_ = 0;
  std::uint64_t delivered_ = 0;  // jobs below this are done with
  std::uint64_t in_flight_ = 0;  // jobs produced and not yet done with
  std::uint64_t bound_ = 0;      // those of them that are for one worker alone
  std::vector<bool> has_job_;    // of each worker, scratch: a bound job waits for it
  std::uint64_t leased_bytes_ = 0;
  std::uint64_t ready_bytes_ = 0;  // leased by elements not yet taken
  std::uint64_t restarts_ = 0;
  std::uint32_t unannounced_ = 0;  // workers asked for, of whose birth nothing was heard yet
  std::uint32_t startup_deaths_ = 0;
  std::uint64_t oom_kills_ = 0;
  std::vector<Death> deaths_;
  std::optional<Outcome> startup_error_;
  std::vector<std::byte> startup_payload_;
  std::string broken_;
  // When to ring and when to sleep (see manager_wait.cpp).
  std::chrono::steady_clock::time_point last_ring_{};
  std::chrono::steady_clock::time_point last_wake_{};
  std::uint64_t taken_since_wake_ = 0;
  std::uint32_t polls_since_news_ = 0;
  bool side_channel_news_ = false;
  double element_us_ = 1e9;
  bool ordered_ = true;
  bool coalesce_ = true;
};

}  // namespace stook::workers
