// What bounds a pool: the memory limit with consumers of every kind, jobs that are given up, slots
// that run out.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

class MemoryLimit : public ProcessTest {
 protected:
  static constexpr std::uint64_t kElement = std::uint64_t{64} << 10;

  static PoolOptions limited(std::uint64_t elements, std::uint32_t workers = 2) {
    PoolOptions options;
    options.manager.worker_count = workers;
    options.manager.per_worker_buffer_size = 8;
    options.manager.memory_limit = elements * kElement;
    return options;
  }
  static Order element(std::uint64_t) { return Order{Act::kMake, 0, kElement, 0}; }
};

TEST_F(MemoryLimit, AConsumerThatKeepsEverythingGetsCopiesInTime) {
  for (const bool ordered : {true, false}) {
    const PoolOptions options = limited(16);
    Pool pool(options);
    Ledger ledger(400, ordered);
    std::vector<Element> kept;
    std::uint64_t copied = 0;
    std::uint64_t most = 0;
    pool.run(0, 400, ordered, &MemoryLimit::element, [&](Element element) {
      ledger.take(element);
      most = std::max(most, pool.manager().stats().outstanding_bytes);
      if (pool.manager().should_copy_out(element.outcome())) {
        ++copied;  // the consumer copies, and lets the lease go
      } else {
        kept.push_back(std::move(element));
      }
    });
    ledger.check();
    EXPECT_GT(copied, 300U);
    EXPECT_GE(kept.size(), 4U) << "nothing was kept in shared memory";
    // Each worker may have claimed one job just below the limit, and the next to deliver may
    // exceed it.
    EXPECT_LE(most, options.manager.memory_limit + 3 * kElement);
    for (const Element& element : kept) EXPECT_EQ(element.fault(), "");
    kept.clear();
    EXPECT_EQ(pool.manager().stats().outstanding_bytes, 0U);
  }
}

TEST_F(MemoryLimit, AConsumerThatIgnoresTheAdviceIsServedOneByOneNotForgotten) {
  for (const bool ordered : {true, false}) {
    Pool pool(limited(4));
    Ledger ledger(100, ordered);
    std::vector<Element> kept;
    pool.run(0, 100, ordered, &MemoryLimit::element, [&](Element element) {
      ledger.take(element);
      kept.push_back(std::move(element));
    });
    ledger.check();
  }
}

TEST_F(MemoryLimit, ElementsLargerThanTheLimitAreDelivered) {
  PoolOptions options = limited(1);
  options.manager.memory_limit = 1;
  Pool pool(options);
  Ledger ledger(100, true);
  pool.run(0, 100, true, &MemoryLimit::element, [&](const Element& one) { ledger.take(one); });
  ledger.check();
}

// Whatever sleeps for memory is woken by releases of another thread, or by what it lets be taken.
TEST_F(MemoryLimit, AnotherThreadLetsGo) {
  for (const bool ordered : {true, false}) {
    Pool pool(limited(6, 3));
    Ledger ledger(2000, ordered);
    std::mutex mutex;
    std::deque<Element> handed;
    bool done = false;
    std::thread dropper([&] {
      for (;;) {
        std::deque<Element> mine;
        {
          const std::lock_guard lock(mutex);
          if (done) return;
          mine.swap(handed);
        }
        mine.clear();  // releases, without the lock
        std::this_thread::yield();
      }
    });
    pool.run(0, 2000, ordered, &MemoryLimit::element, [&](Element element) {
      ledger.take(element);
      const std::lock_guard lock(mutex);
      handed.push_back(std::move(element));
    });
    {
      const std::lock_guard lock(mutex);
      done = true;
    }
    dropper.join();
    handed.clear();
    ledger.check();
    EXPECT_EQ(pool.manager().stats().outstanding_bytes, 0U);
  }
}

TEST_F(MemoryLimit, WhatIsHeldFromDeadWorkersCountsUntilItIsReleased) {
  PoolOptions options = limited(1000);
  Pool pool(options);
  std::vector<Element> kept;
  pool.run(
      0, 40, true,
      [](std::uint64_t position) {
        return Order{position % 10 == 9 ? Act::kDieAfterPublish : Act::kMake, 0, kElement, 0};
      },
      [&](Element element) { kept.push_back(std::move(element)); });
  ASSERT_EQ(kept.size(), 40U);
  EXPECT_EQ(pool.manager().stats().outstanding_bytes, 40 * kElement);
  kept.clear();
  EXPECT_EQ(pool.manager().stats().outstanding_bytes, 0U);
}

// ------------------------------------------------------------------ jobs that are given up

class Abandon : public ProcessTest {
 protected:
  // Runs short passes until nothing that was given up is on its way any more.
  static void until_all_is_released(Pool& pool) {
    while (pool.manager().stats().outstanding_bytes != 0) {
      pool.run(7, 4, false, [](std::uint64_t) { return Order{}; }, [](const Element&) {});
    }
  }
};

TEST_F(Abandon, ThePassAfterIsWholeAndNothingOldComes) {
  for (const bool ordered : {true, false}) {
    for (const std::uint32_t workers : {1U, 2U, 5U}) {
      PoolOptions options;
      options.manager.worker_count = workers;
      Pool pool(options);
      std::mt19937 random(workers);
      for (std::uint64_t epoch = 0; epoch < 150; ++epoch) {
        std::uint64_t position = 0;
        const auto most = random() % (2 * pool.manager().window());
        for (; position < most && pool.manager().can_produce(); ++position) {
          pool.produce(2 * epoch, position,
                       Order{Act::kMake, random() % 4 == 0 ? 3000U : 0U, 8000, 100});
        }
        for (auto take = random() % (position + 1); take > 0; --take) {
          EXPECT_EQ(pool.next(ordered)->fault(), "");
        }
        pool.abandon();
        EXPECT_EQ(pool.manager().under_way(), 0U);
        Ledger ledger(20, ordered);
        pool.run(
            2 * epoch + 1, 20, ordered, [](std::uint64_t) { return Order{}; },
            [&](const Element& element) {
              ASSERT_EQ(element.epoch(), 2 * epoch + 1) << "an element of a pass given up";
              ledger.take(element);
            });
        ledger.check();
        if (HasFatalFailure()) return;
      }
      until_all_is_released(pool);
      EXPECT_EQ(pool.blackboard().wrong.load(), 0U);
      EXPECT_EQ(pool.manager().stats().restarts, 0U) << "a worker ended";
    }
  }
}

// A loop that is left at once, again and again, as `next(iter(loader))` does.
TEST_F(Abandon, PassesLeftAtOnceDoNotFillTheRings) {
  for (const std::uint32_t workers : {1U, 2U, 5U}) {
    PoolOptions options;
    options.manager.worker_count = workers;
    Pool pool(options);
    for (std::uint64_t pass = 0; pass < 100; ++pass) {
      const std::uint64_t started = pool.blackboard().started.load();
      std::uint64_t produced = 0;
      for (; pool.manager().can_produce(); ++produced) pool.produce(pass, produced, Order{});
      // Until user code ran for all of them: every result is, or soon will be, in a ring.
      while (pool.blackboard().started.load() < started + produced) {
        pool.manager().wait(true, nullptr);  // rings whoever still sleeps
        std::this_thread::yield();
      }
      pool.abandon();
    }
    EXPECT_EQ(pool.manager().stats().restarts, 0U) << "a worker ended";
    until_all_is_released(pool);
  }
}

TEST_F(Abandon, AStuckJobOfAnEarlierPassHoldsNothingUp) {
  Pool pool;
  const Order waits{Act::kWaitAtGate, 5000, 4096, 0};
  pool.produce(0, 0, waits);
  while (pool.blackboard().at_gate.load() == 0) pool.manager().wait(true, nullptr);
  pool.abandon();
  // Many times the capacity of every ring, through the other worker alone.
  for (std::uint64_t epoch = 1; epoch <= 20; ++epoch) {
    Ledger ledger(40, true);
    pool.run(
        epoch, 40, true, [](std::uint64_t) { return Order{Act::kMake, 5000, 4096, 0}; },
        [&](const Element& element) { ledger.take(element); });
    ledger.check();
  }
  pool.open_gate(1);
  while (pool.blackboard().past_gate.load() == 0) std::this_thread::yield();
  until_all_is_released(pool);
  EXPECT_EQ(pool.blackboard().wrong.load(), 0U)
      << "arguments were overwritten while a given-up job used them";
  EXPECT_EQ(pool.manager().stats().restarts, 0U);
}

TEST_F(Abandon, AWorkerThatDiesInAGivenUpJobIsReplacedAndTheJobForgotten) {
  PoolOptions options;
  options.manager.restart_workers = false;
  Pool pool(options);
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  while (pool.blackboard().started.load() == 0) pool.manager().wait(true, nullptr);
  pool.abandon();
  while (pool.manager().worker_pids().size() < 2) {
    pool.produce(1, 0, Order{});
    EXPECT_TRUE(pool.next(true));
    pool.manager().wait(true, nullptr);
  }
  for (const pid_t pid : pool.manager().worker_pids()) ::kill(pid, SIGKILL);
  Ledger ledger(200, true);
  std::uint64_t lost = 0;
  pool.run(
      2, 200, true, [](std::uint64_t) { return Order{}; },
      [&](const Element& element) {
        if (element.kind() == workers::OutcomeKind::kWorkerDied) {
          ++lost;  // the other worker may have been at one of these
        } else {
          EXPECT_EQ(element.fault(), "");
        }
      });
  EXPECT_LE(lost, 1U);
  // A death is noticed in a wait; the other worker may have done all before there was one.
  while (pool.manager().stats().restarts < 2) pool.manager().wait(true, nullptr);
}

}  // namespace
}  // namespace stook
