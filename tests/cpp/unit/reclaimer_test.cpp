#include "shm/reclaimer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <functional>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "shm/error.h"
#include "tests/cpp/unit/child_process.h"

namespace stook::shm {
namespace {

using std::chrono::milliseconds;

// Long enough for anything here; reached only by a test that fails.
constexpr milliseconds kLong{60'000};

// A process forked by one that has threads: ThreadSanitizer ends it when it starts threads of its
// own, and AddressSanitizer's allocator, which a starting thread needs, has locks that another
// thread of the parent may have held.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr bool kChildrenMayStartThreads = false;
#else
constexpr bool kChildrenMayStartThreads = true;
#endif

// What is done to it, in numbers.
struct Ledger {
  std::atomic<std::uint64_t> reclaimed{0};
  std::atomic<std::uint64_t> at_exit{0};
  std::atomic<std::uint64_t> by_callers{0};
};

class Thing final : public Reclaimable {
 public:
  explicit Thing(Ledger& ledger, std::function<void()> work = {})
      : ledger_(ledger), work_(std::move(work)), submitter_(std::this_thread::get_id()) {}
  void reclaim() noexcept override {
    if (work_) work_();
    if (std::this_thread::get_id() == submitter_) ledger_.by_callers.fetch_add(1);
    ledger_.reclaimed.fetch_add(1);
    delete this;
  }
  void reclaim_at_exit() noexcept override { ledger_.at_exit.fetch_add(1); }

 private:
  Ledger& ledger_;
  std::function<void()> work_;
  std::thread::id submitter_;
};

class Reclaimer : public ::testing::Test {
 protected:
  ~Reclaimer() override { configure_reclaimer(0, 0); }

  void submit(std::function<void()> work = {}) {
    submit_reclaim(new Thing(ledger_, std::move(work)));
  }
  // Keeps a thread busy until the gate opens; returns once it is.
  void block_a_thread(std::latch& gate) {
    const auto entered = std::make_shared<std::latch>(1);
    submit([entered, &gate] {
      entered->count_down();
      gate.wait();
    });
    entered->wait();
  }

  Ledger ledger_;
};

TEST_F(Reclaimer, WithoutThreadsTheCallerDoesIt) {
  const ReclaimerStats before = reclaimer_stats();
  submit();
  EXPECT_EQ(ledger_.by_callers, 1U);
  EXPECT_EQ(reclaimer_stats().done_by_callers, before.done_by_callers + 1);
  EXPECT_EQ(reclaimer_stats().threads, 0U);
  EXPECT_FALSE(reclaimer_has_threads());
  EXPECT_TRUE(flush_reclaimer(milliseconds{0}));
}

TEST_F(Reclaimer, AThreadDoesWhatIsSubmitted) {
  const ReclaimerStats before = reclaimer_stats();
  configure_reclaimer(1, 100);
  EXPECT_TRUE(reclaimer_has_threads());
  for (int i = 0; i < 50; ++i) submit();
  ASSERT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.reclaimed, 50U);
  EXPECT_EQ(ledger_.by_callers, 0U);
  const ReclaimerStats stats = reclaimer_stats();
  EXPECT_EQ(stats.threads, 1U);
  EXPECT_EQ(stats.max_outstanding, 100U);
  EXPECT_EQ(stats.outstanding, 0U);
  EXPECT_EQ(stats.done_by_threads, before.done_by_threads + 50);
}

TEST_F(Reclaimer, WhatIsInWorkCountsAsOutstandingAndAFullQueueIsTheCallers) {
  configure_reclaimer(1, 3);
  std::latch gate(1);
  block_a_thread(gate);
  submit();
  submit();
  EXPECT_EQ(reclaimer_stats().outstanding, 3U);
  EXPECT_EQ(ledger_.reclaimed, 0U);
  submit();
  EXPECT_EQ(ledger_.by_callers, 1U) << "one more than max_outstanding was queued";
  EXPECT_FALSE(flush_reclaimer(milliseconds{1}));
  gate.count_down();
  EXPECT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.reclaimed, 4U);
  EXPECT_EQ(ledger_.by_callers, 1U);
  submit();
  EXPECT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.by_callers, 1U) << "a slot of the queue was lost";
}

TEST_F(Reclaimer, ThreadsWorkAtTheSameTime) {
  configure_reclaimer(3, 10);
  std::latch all(3);  // opens only when three threads are in it
  for (int i = 0; i < 3; ++i) submit([&all] { all.arrive_and_wait(); });
  EXPECT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.reclaimed, 3U);
}

TEST_F(Reclaimer, GrowsAndShrinksWhileBusy) {
  configure_reclaimer(1, 4);
  std::latch gate(1);
  block_a_thread(gate);
  for (int i = 0; i < 3; ++i) submit();
  configure_reclaimer(3, 2);  // fewer places than are taken: nothing is lost
  EXPECT_GE(reclaimer_stats().outstanding, 1U);
  EXPECT_EQ(reclaimer_stats().threads, 3U);
  // Shrinking waits for the threads that end; the blocked one is the first, which stays.
  configure_reclaimer(1, 50);
  EXPECT_EQ(reclaimer_stats().threads, 1U);
  gate.count_down();
  EXPECT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.reclaimed, 4U);
  for (int i = 0; i < 50; ++i) submit();
  EXPECT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.reclaimed, 54U);
}

TEST_F(Reclaimer, ASmallerQueueKeepsWhatTheLargerOneHeld) {
  configure_reclaimer(1, 8);
  std::latch gate(1);
  block_a_thread(gate);
  std::vector<int> order;
  for (int i = 0; i < 7; ++i) submit([&order, i] { order.push_back(i); });
  configure_reclaimer(1, 2);
  submit();
  EXPECT_EQ(ledger_.by_callers, 1U) << "more than the smaller queue may hold";
  gate.count_down();
  ASSERT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6}));
}

TEST_F(Reclaimer, ZeroThreadsEndsThemOnceTheQueueIsDone) {
  configure_reclaimer(2, 100);
  std::latch gate(1);
  block_a_thread(gate);
  block_a_thread(gate);
  for (int i = 0; i < 20; ++i) submit();
  std::thread opener([&gate] { gate.count_down(); });
  configure_reclaimer(0, 0);
  opener.join();
  EXPECT_EQ(ledger_.reclaimed, 22U);
  EXPECT_EQ(ledger_.by_callers, 0U) << "what was submitted to the threads is theirs";
  EXPECT_EQ(reclaimer_stats().threads, 0U);
  submit();
  EXPECT_EQ(ledger_.by_callers, 1U);
}

TEST_F(Reclaimer, AReclaimedThingMaySubmitAnother) {
  configure_reclaimer(1, 2);
  submit([this] { submit(); });
  ASSERT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.reclaimed, 2U);
}

TEST_F(Reclaimer, ImpossibleNumbersAreRefusedAndChangeNothing) {
  configure_reclaimer(2, 7);
  for (const auto& [threads, most] :
       {std::pair{1U, 0U}, {1U, (1U << 20) + 1}, {257U, 5U}, {~0U, 5U}}) {
    try {
      configure_reclaimer(threads, most);
      ADD_FAILURE() << threads << ", " << most;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
  }
  EXPECT_EQ(reclaimer_stats().threads, 2U);
  EXPECT_EQ(reclaimer_stats().max_outstanding, 7U);
}

TEST_F(Reclaimer, ItsThreadsTakeNoSignals) {
  configure_reclaimer(1, 10);
  sigset_t inside;
  ::sigemptyset(&inside);
  submit([&inside] { ::pthread_sigmask(SIG_BLOCK, nullptr, &inside); });
  ASSERT_TRUE(flush_reclaimer(kLong));
  for (const int signal : {SIGINT, SIGTERM, SIGCHLD, SIGALRM, SIGUSR1, SIGPROF}) {
    EXPECT_EQ(::sigismember(&inside, signal), 1) << signal;
  }
  sigset_t here;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &here);
  EXPECT_EQ(::sigismember(&here, SIGINT), 0) << "the starter's own signals stayed blocked";
}

TEST_F(Reclaimer, FailuresAreCountedAndTheFirstIsWritten) {
  const auto written = [](int failures) {
    ::testing::internal::CaptureStderr();
    for (int i = 0; i < failures; ++i) count_reclaim_failure("unlinking x", EACCES);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(exit_code_of_child([&] {
              const std::string text = written(3);
              if (reclaimer_stats().failures != 3) return 1;
              if (text.rfind("stook: ", 0) != 0) return 2;
              if (text.find("unlinking x: Permission denied") == std::string::npos) return 3;
              if (text.find('\n') != text.size() - 1) return 4;
              return 0;
            }),
            0);
}

TEST_F(Reclaimer, AForkedChildStartsWithoutThreadsAndLeavesTheQueueToItsParent) {
  configure_reclaimer(1, 10);
  std::latch gate(1);
  block_a_thread(gate);
  submit();
  EXPECT_EQ(exit_code_of_child([this] {
              if (reclaimer_stats().threads != 0 || reclaimer_stats().outstanding != 0) return 1;
              if (!flush_reclaimer(milliseconds{0})) return 2;
              submit();
              if (ledger_.reclaimed != 1 || reclaimer_stats().done_by_callers != 1) return 3;
              if (!kChildrenMayStartThreads) return 0;
              configure_reclaimer(2, 10);
              submit();
              if (!flush_reclaimer(kLong) || ledger_.reclaimed != 2) return 4;
              finish_reclaimer(milliseconds{0});
              return ledger_.at_exit == 0 ? 0 : 5;
            }),
            0);
  gate.count_down();
  ASSERT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(ledger_.reclaimed, 2U);
}

// Forking at any moment of the threads' work: no lock is inherited that nobody opens.
TEST_F(Reclaimer, ForkingWhileItWorks) {
  // Not from the heap: AddressSanitizer's has locks that a child inherits.
  struct Counter final : Reclaimable {
    std::atomic<std::uint64_t> times{0};
    void reclaim() noexcept override { times.fetch_add(1); }
    void reclaim_at_exit() noexcept override {}
  };
  Counter parents;
  Counter childs;
  configure_reclaimer(2, 8);
  std::atomic<bool> stop{false};
  std::thread submitter([&] {
    while (!stop.load()) submit_reclaim(&parents);
  });
  for (int i = 0; i < 30; ++i) {
    EXPECT_EQ(exit_code_of_child([&childs] {
                submit_reclaim(&childs);
                configure_reclaimer(kChildrenMayStartThreads ? 1 : 0, 8);
                submit_reclaim(&childs);
                return flush_reclaimer(kLong) && childs.times == 2 ? 0 : 1;
              }),
              0);
  }
  stop.store(true);
  submitter.join();
  EXPECT_TRUE(flush_reclaimer(kLong));
  EXPECT_GT(parents.times, 0U);
}

TEST_F(Reclaimer, FinishDoesWhatThereIsTimeFor) {
  EXPECT_EQ(exit_code_of_child([this] {
              configure_reclaimer(2, 50);
              for (int i = 0; i < 40; ++i) submit();
              finish_reclaimer(kLong);
              if (ledger_.reclaimed != 40 || ledger_.at_exit != 0) return 1;
              submit();
              return ledger_.by_callers == 1 && reclaimer_stats().threads == 0 ? 0 : 2;
            }),
            0);
}

TEST_F(Reclaimer, FinishDoesNotWaitForAThreadThatHangs) {
  EXPECT_EQ(exit_code_of_child([this] {
              static std::latch never(1);
              configure_reclaimer(1, 50);
              block_a_thread(never);
              for (int i = 0; i < 5; ++i) submit();
              finish_reclaimer(milliseconds{1});
              if (ledger_.at_exit != 5 || ledger_.reclaimed != 0) return 1;
              try {
                configure_reclaimer(1, 5);
                return 2;
              } catch (const Error&) {
              }
              return 0;  // and the process ends although the thread does not
            }),
            0);
}

}  // namespace
}  // namespace stook::shm
