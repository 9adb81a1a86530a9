// A worker killed at every instruction of one cycle: harvest, allocate, write, publish, ring,
// claim.
//
// The test is the parent. The worker is a child that it traces, one instruction at a time. A kill
// leaves the shared memory just as it is, so after every instruction the test takes a copy of it
// and recovers from that as the manager does: drain, retire, deal the lost job again. A second
// sweep does kill, at as many points as fit the time.
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "shm/eventfd.h"
#include "shm/leased_arena.h"
#include "tests/cpp/process/pool.h"
#include "tests/cpp/unit/shared_pages.h"
#include "workers/worker.h"

namespace stook {
namespace {

using workers::BlockRef;
using workers::ResultSlot;

constexpr std::uint64_t kCapacity = 8;      // of job and result ring
constexpr std::uint64_t kStepped = 3;       // this job's cycle is stepped; the ones before warm up
constexpr std::uint64_t kArrayBytes = 128;  // written; few, for every word is instructions
constexpr int kNoTracing = 77;
// Steps that all kills of a sweep may take together; they cost 10 to 40 us each.
constexpr std::uint64_t kStepBudget = 200000;
// Instructions after which the test looks; all, but under sanitizers, which make many more of them.
constexpr std::uint64_t kMostLooks = 20000;

struct Cycle {
  std::uint64_t block_bytes;  // what the stepped job allocates
  bool sleeps;                // no job is there when the cycle ends: the worker goes to sleep
};

class SteppedRunner : public workers::JobRunner {
 public:
  explicit SteppedRunner(const Cycle& cycle) : cycle_(cycle) {}
  void before_sleep() override {}
  void after_sleep() override {}

  void run(const workers::Job& job, workers::Worker& worker) override {
    if (job.number >= kStepped) ::kill(::getpid(), SIGSTOP);  // the tracer's marks
    const auto block =
        worker.arena().allocate(job.number == kStepped ? cycle_.block_bytes : shm::kPageBytes);
    if (!block) ::_exit(1);
    ElementHead head{0, job.number, kArrayBytes, 0, 0, 1};
    head.sum = write_array(block->data, kArrayBytes, 0, job.number);
    const BlockRef ref{block->block.offset, block->block.capacity, block->block.id, 0};
    workers::ResultDraft draft;
    draft.job = job.number;
    draft.moved_blocks = {&ref, 1};
    draft.payload = std::as_bytes(std::span(&head, 1));
    if (!worker.publish(draft)) ::_exit(1);
    worker.arena().free(block->data);
  }

 private:
  Cycle cycle_;
};

class IgnoreReleases : public shm::ReleaseObserver {
 public:
  void on_release(std::uint64_t) noexcept override {}
};

// A worker, traced, and the parent's side of what they share.
class World {
 public:
  explicit World(const Cycle& cycle)
      : cycle_(cycle),
        control_fd_(shm::create_shared_memory("stook-control", layout().total_bytes())),
        control_memory_(control_fd_.get(), layout().total_bytes(), shm::Access::kReadWrite),
        control_(control_memory_.data(), layout()),
        arguments_fd_(shm::create_shared_memory("stook-arguments", shm::kPageBytes)),
        arena_fd_(shm::create_shared_memory("stook-arena", kArenaBytes)),
        parent_bell_(shm::create_eventfd(shm::EventWait::kNonBlocking)),
        worker_bell_(shm::create_eventfd(shm::EventWait::kBlocking)) {
    workers::ControlHeader& header = control_.header();
    header.magic = workers::kControlMagic;
    header.worker_count = layout().worker_count;
    header.job_capacity = kCapacity;
    header.result_capacity = kCapacity;
    header.memory_limit = kArenaBytes;
    header.arena_bytes = kArenaBytes;
    header.arguments_bytes = shm::kPageBytes;
    arena_ = shm::LeasedArena::open(arena_fd_.get(), workers::arena_layout(header),
                                    std::make_shared<IgnoreReleases>());
    reader_.emplace(arena_->header().results, slots(), kCapacity);
    while (produced_ <= kStepped) produce();
    if (!cycle.sleeps) produce();
  }
  // What would be left of `other` if its worker were killed now.
  explicit World(const World* other)
      : cycle_(other->cycle_),
        control_fd_(shm::create_shared_memory("stook-control", layout().total_bytes())),
        control_memory_(control_fd_.get(), layout().total_bytes(), shm::Access::kReadWrite),
        control_(control_memory_.data(), layout()),
        arena_fd_(shm::create_shared_memory("stook-arena", kArenaBytes)),
        produced_(other->produced_) {
    std::memcpy(control_memory_.data(), other->control_memory_.data(), control_memory_.size());
    arena_ = shm::LeasedArena::open(arena_fd_.get(), workers::arena_layout(control_.header()),
                                    std::make_shared<IgnoreReleases>());
    unsigned char backed[kArenaBytes / shm::kPageBytes];
    const std::byte* source = other->arena_->memory().data();
    if (::mincore(other->arena_->memory().data(), kArenaBytes, backed) != 0) std::abort();
    for (std::uint64_t page = 0; page < std::size(backed); ++page) {
      if ((backed[page] & 1U) == 0) continue;
      const std::uint64_t offset = page * shm::kPageBytes;
      std::memcpy(arena_->memory().data() + offset, source + offset, shm::kPageBytes);
    }
    reader_.emplace(arena_->header().results, slots(), kCapacity, kStepped);
    for (const Held& held : other->held_) {
      EXPECT_TRUE(arena_->lease(held.block.id, held.block.offset, held.block.bytes));
      held_.push_back(held);
    }
  }
  ~World() {
    kill();
    for (const Held& held : held_) arena_->release(held.block.id);
    arena_->drop_reference();
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // Starts the worker and lets it run up to the stepped job. False if tracing is not permitted.
  bool start() {
    worker_ = ::fork();
    if (worker_ == 0) run_worker();
    const int status = wait_for_stop();
    if (WIFEXITED(status) && WEXITSTATUS(status) == kNoTracing) {
      worker_ = 0;
      return false;
    }
    EXPECT_TRUE(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP) << status;
    // Take what the warm-up made. One block stays held, the others wait to be harvested.
    for (std::uint64_t job = 0; job < kStepped; ++job) take(job);
    for (std::size_t i = 1; i < held_.size(); ++i) arena_->release(held_[i].block.id);
    held_.resize(1);
    shm::announce_sleep(control_.header().parent, workers::parent_sleeps_until(kStepped, true));
    return true;
  }

  // One instruction. False at the end of the cycle.
  bool step() {
    if (cycle_.sleeps && produced_ == kStepped + 1 && worker_is_about_to_wait_for_its_bell()) {
      produce();
      EXPECT_TRUE(shm::take_sleeper(control_.cell(0).sleep, [](std::uint64_t) { return true; }))
          << "the worker sleeps and nobody can tell";
      shm::ring_eventfd(worker_bell_.get());
    }
    if (::ptrace(PTRACE_SINGLESTEP, worker_, nullptr, nullptr) != 0) {
      ADD_FAILURE() << "PTRACE_SINGLESTEP: " << std::strerror(errno);
      return false;
    }
    const int status = wait_for_stop();
    EXPECT_TRUE(WIFSTOPPED(status)) << "the worker ended by itself: " << status;
    return WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP;
  }

  void kill() {
    if (worker_ == 0) return;
    ::kill(worker_, SIGKILL);
    while (::waitpid(worker_, nullptr, __WALL) < 0 && errno == EINTR) {
    }
    worker_ = 0;
  }

  // What must hold after every instruction; changes nothing.
  std::string fault_now() {
    const std::uint64_t tail = arena_->header().results.tail.load(std::memory_order_acquire);
    if (tail != kStepped && tail != kStepped + 1) return "a ring position that cannot be";
    const bool published = tail == kStepped + 1;
    if (published) {
      const std::string fault = fault_of(slots()[kStepped & (kCapacity - 1)], kStepped);
      if (!fault.empty()) return fault;
    }
    if (claimer(kStepped) != workers::claimer_of(0)) return "the job lost its claimer";
    const std::uint64_t next = produced_ > kStepped + 1 ? claimer(kStepped + 1) : 0;
    if (next != workers::kUnclaimed && !published) return "claimed before the last was published";
    if (next != workers::kUnclaimed && next != workers::claimer_of(0)) return "a strange claimer";
    if (bell_was_rung() && !published) return "the parent was rung for nothing";
    const std::uint64_t handed = control_.cell(0).handed_bytes.load(std::memory_order_relaxed);
    const std::uint64_t before = kStepped * shm::kPageBytes;
    const std::uint64_t after = before + shm::block_capacity(cycle_.block_bytes);
    if (handed != after && (handed != before || published)) return "bytes that cannot be";
    if (!held_[0].is_whole(*arena_)) return "a block that the parent holds was written";
    return "";
  }

  bool bell_was_rung() const {
    pollfd entry{parent_bell_.get(), POLLIN, 0};
    return ::poll(&entry, 1, 0) == 1;
  }

  // What the manager does when it hears of the death. Empty if all is well again.
  std::string recover() {
    bool published = false;
    if (reader_->front() != nullptr) {
      const std::string fault = fault_of(*reader_->front(), kStepped);
      if (!fault.empty()) return fault;
      take(kStepped);
      published = true;
    }
    if (reader_->front() != nullptr) return "more was published than was made";

    // Jobs that the dead worker held and did not publish run elsewhere, once each.
    std::vector<std::uint64_t> lost;
    std::vector<std::uint64_t> open;
    for (std::uint64_t job = kStepped; job < produced_; ++job) {
      if (job == kStepped && published) continue;
      open.push_back(job);
      if (claimer(job) == workers::claimer_of(0)) lost.push_back(job);
    }
    if (!published && (lost.empty() || lost[0] != kStepped)) return "a job vanished";
    for (const std::uint64_t job : lost) {
      workers::unclaim_job(control_.header().jobs, control_.job(job), job);
    }
    for (const std::uint64_t job : open) {
      if (claim_for_another() != job) return "a lost job is not dealt again";
    }
    if (claim_for_another()) return "a job is dealt twice";

    arena_->retire();
    std::uint64_t held_pages = 0;
    for (const Held& held : held_) {
      if (!held.is_whole(*arena_)) return "a held block was lost when the arena was retired";
      held_pages += backed_pages(arena_->memory(), held.block.offset,
                                 shm::round_up(held.block.bytes, shm::kPageBytes));
    }
    const std::uint64_t first = workers::arena_layout(control_.header()).first_block_offset();
    if (backed_pages(arena_->memory(), first, kArenaBytes - first) != held_pages) {
      return "memory that nobody holds was not given back";
    }
    for (const Held& held : held_) arena_->release(held.block.id);
    held_.clear();
    if (backed_pages(arena_->memory(), first, kArenaBytes - first) != 0) {
      return "released memory of a dead worker was not given back";
    }
    return "";
  }

 private:
  static constexpr std::uint64_t kArenaBytes = std::uint64_t{4} << 20;

  struct Held {
    BlockRef block;
    std::uint64_t position;
    bool is_whole(const shm::LeasedArena& arena) const {
      return sum_of(arena.memory().data() + block.offset, kArrayBytes) ==
             expected_sum(kArrayBytes, 0, position);
    }
  };

  // Two workers: the other one is dealt what this one loses.
  static workers::ControlLayout layout() { return {2, kCapacity}; }

  const ResultSlot* slots() const {
    return reinterpret_cast<const ResultSlot*>(arena_->memory().data() +
                                               shm::ArenaLayout::kSlotsOffset);
  }
  void produce() {
    workers::JobSlot& slot = control_.job(produced_);
    slot.position = produced_;
    workers::produce_job(control_.header().jobs, slot, produced_);
    ++produced_;
  }
  std::uint64_t claimer(std::uint64_t job) const {
    return workers::claim_claimer(control_.job(job).claim.load(std::memory_order_relaxed));
  }
  std::optional<std::uint64_t> claim_for_another() {
    return workers::claim_lowest(control_.header().jobs, control_.jobs(), kCapacity, 1,
                                 [](std::uint64_t) { return true; });
  }

  std::string fault_of(const ResultSlot& slot, std::uint64_t job) const {
    BlockRef block{};
    ElementHead head{};
    if (slot.job != job || slot.block_count != 1 || slot.external != 0 ||
        slot.payload_bytes != sizeof head) {
      return "a torn slot";
    }
    std::memcpy(&block, slot.bytes, sizeof block);
    std::memcpy(&head, slot.bytes + sizeof block, sizeof head);
    if (head.position != job || head.sum != expected_sum(kArrayBytes, 0, job)) {
      return "a torn envelope";
    }
    if (block.bytes != slot.handed_bytes || block.offset > kArenaBytes - block.bytes) {
      return "a torn block reference";
    }
    return Held{block, job}.is_whole(*arena_) ? "" : "a torn array";
  }
  void take(std::uint64_t job) {
    const ResultSlot* slot = reader_->front();
    ASSERT_NE(slot, nullptr);
    BlockRef block{};
    std::memcpy(&block, slot->bytes, sizeof block);
    ASSERT_TRUE(arena_->lease(block.id, block.offset, block.bytes));
    held_.push_back({block, job});
    reader_->pop();
  }

  int wait_for_stop() const {
    int status = 0;
    while (::waitpid(worker_, &status, __WALL) < 0 && errno == EINTR) {
    }
    return status;
  }

  bool worker_is_about_to_wait_for_its_bell() const {
#if defined(__x86_64__)
    if (control_.cell(0).sleep.reason.load(std::memory_order_relaxed) == shm::kAwake) return false;
    user_regs_struct registers{};
    ::ptrace(PTRACE_GETREGS, worker_, nullptr, &registers);
    const long code = ::ptrace(PTRACE_PEEKTEXT, worker_, registers.rip, nullptr);
    constexpr long kSyscall = 0x050f;
    return (code & 0xffff) == kSyscall && registers.rax == SYS_epoll_wait;
#else
    return false;
#endif
  }

  [[noreturn]] void run_worker() {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != 0) ::_exit(kNoTracing);
    workers::WorkerBirth birth;
    birth.control.reset(::dup(control_fd_.get()));
    birth.arguments.reset(::dup(arguments_fd_.get()));
    birth.arena.reset(::dup(arena_fd_.get()));
    birth.parent_bell.reset(::dup(parent_bell_.get()));
    birth.own_bell.reset(::dup(worker_bell_.get()));
    workers::Worker worker(std::move(birth));
    SteppedRunner runner(cycle_);
    worker.run(runner);
  }

  Cycle cycle_;
  shm::FileDescriptor control_fd_;
  shm::Mapping control_memory_;
  workers::Control control_;
  shm::FileDescriptor arguments_fd_;
  shm::FileDescriptor arena_fd_;
  shm::FileDescriptor parent_bell_;
  shm::FileDescriptor worker_bell_;
  shm::LeasedArena* arena_ = nullptr;
  std::optional<shm::RingReader<ResultSlot>> reader_;
  std::uint64_t produced_ = 0;
  std::vector<Held> held_;
  pid_t worker_ = 0;
};

class SingleStep : public ProcessTest, public ::testing::WithParamInterface<Cycle> {
 protected:
  void SetUp() override {
    ProcessTest::SetUp();
#if !defined(__x86_64__)
    GTEST_SKIP() << "single steps break load-exclusive/store-exclusive pairs on this processor";
#endif
    World world(GetParam());
    if (!world.start()) {
      GTEST_SKIP() << "ptrace is not permitted here, so no worker can be stepped";
    }
    // On one processor a step is two switches; on two it is two wake-ups of the other. Children
    // inherit it.
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<std::size_t>(::sched_getcpu()), &one);
    ::sched_getaffinity(0, sizeof all_, &all_);
    ::sched_setaffinity(0, sizeof one, &one);
  }
  void TearDown() override {
    if (CPU_COUNT(&all_) != 0) ::sched_setaffinity(0, sizeof all_, &all_);
    ProcessTest::TearDown();
  }

  // Instructions from one mark to the next.
  static std::uint64_t length_of_cycle() {
    World world(GetParam());
    EXPECT_TRUE(world.start());
    std::uint64_t length = 0;
    while (world.step()) ++length;
    return length;
  }

 private:
  cpu_set_t all_{};
};

TEST_P(SingleStep, WhatIsLeftAfterEveryInstructionIsWholeAndRecoveredFrom) {
  const std::uint64_t stride = 1 + length_of_cycle() / kMostLooks;
  World world(GetParam());
  ASSERT_TRUE(world.start());
  std::uint64_t steps = 0;
  std::string fault;
  do {
    if (steps % stride != 0) continue;
    fault = world.fault_now();
    if (fault.empty()) fault = World(&world).recover();
  } while (fault.empty() && world.step() && ++steps != 0);
  EXPECT_EQ(fault, "") << "after " << steps << " instructions";
  EXPECT_GT(steps, 200U) << "the cycle was not stepped";
  EXPECT_TRUE(world.bell_was_rung()) << "the parent slept and was not woken";
  RecordProperty("instructions", static_cast<int>(steps));
}

TEST_P(SingleStep, AKillAtAnyInstructionIsRecoveredFrom) {
  const std::uint64_t length = length_of_cycle();
  // All points, if their steps fit the budget; else evenly spread ones.
  const std::uint64_t stride = 1 + length * length / 2 / kStepBudget;
  std::uint64_t kills = 0;
  for (std::uint64_t point = 0; point <= length; point += stride, ++kills) {
    World world(GetParam());
    ASSERT_TRUE(world.start());
    // The length differs a little from run to run, with addresses.
    for (std::uint64_t step = 0; step < point && world.step(); ++step) {
    }
    if (HasFailure()) return;
    world.kill();
    ASSERT_EQ(world.recover(), "")
        << "killed after " << point << " of " << length << " instructions";
  }
  std::printf("%llu kills over %llu instructions\n", static_cast<unsigned long long>(kills),
              static_cast<unsigned long long>(length));
}

INSTANTIATE_TEST_SUITE_P(Cycles, SingleStep,
                         ::testing::Values(Cycle{shm::kPageBytes, false},
                                           Cycle{10 * shm::kPageBytes, true}),
                         [](const auto& cycle) {
                           return std::string(cycle.param.sleeps ? "CarvesAndSleeps"
                                                                 : "RecyclesAndGoesOn");
                         });

}  // namespace
}  // namespace stook
