// Workers that are at one item for too long.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "shm/file_descriptor.h"
#include "tests/cpp/process/timed_pool.h"
#include "workers/process.h"

namespace stook {
namespace {

using workers::OutcomeKind;

TEST_F(TimeOut, AStuckElementIsReportedAndTheOthersCome) {
  for (const bool ordered : {true, false}) {
    Pool pool(allowing(1s));
    std::set<std::uint64_t> late;
    std::uint64_t elements = 0;
    pool.run(
        0, 30, ordered,
        [](std::uint64_t position) {
          return Order{position % 16 == 5 ? Act::kStick : Act::kMake, 0, 4096, 0};
        },
        [&](const Element& element) {
          if (element.kind() == OutcomeKind::kTimedOut) {
            late.insert(element.position());
            EXPECT_EQ(element.outcome().attempts, 1U);
            EXPECT_EQ(WTERMSIG(element.outcome().status), SIGKILL);
            EXPECT_FALSE(element.outcome().out_of_memory);
          } else {
            EXPECT_EQ(element.fault(), "");
            ++elements;
          }
        });
    EXPECT_EQ(late, (std::set<std::uint64_t>{5, 21}));
    EXPECT_EQ(elements, 28U);
    EXPECT_EQ(pool.manager().stats().restarts, 2U);
  }
}

// A time-out is final, whatever deaths are allowed.
TEST_F(TimeOut, IsNotTriedAgain) {
  PoolOptions options = allowing(50ms, 1);
  options.manager.max_restarts = 5;
  Pool pool(options);
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  EXPECT_EQ(pool.next(true)->kind(), OutcomeKind::kTimedOut);
  EXPECT_EQ(pool.blackboard().stuck.load(), 1U);
}

TEST_F(TimeOut, AnElementThatWasPublishedIsDelivered) {
  Pool pool(allowing(1s, 1));
  pool.produce(0, 0, Order{Act::kStickAfterPublish, 0, 4096, 0});
  EXPECT_EQ(pool.next(true)->fault(), "");
  pool.produce(0, 1, {});  // nobody runs it before the worker is killed
  EXPECT_EQ(pool.next(true)->fault(), "");
  EXPECT_EQ(pool.manager().stats().restarts, 1U);
}

// Published, then stuck, and killed before anybody looked.
TEST_F(TimeOut, AnElementThatWasPublishedBeforeTheKillIsDelivered) {
  Pool pool(allowing_an_hour());
  pool.wait_for_births();
  pool.produce(0, 0, Order{Act::kStickAfterPublish, 0, 4096, 0});
  wait_until_stuck(pool);
  look_hours_later(pool);
  EXPECT_EQ(pool.next(true)->fault(), "");
  pool.produce(0, 1, {});
  EXPECT_EQ(pool.next(true)->fault(), "");
  EXPECT_EQ(pool.manager().stats().restarts, 1U);
}

// The time that passes after a death is not the item's: it is tried again as after any death.
TEST_F(TimeOut, AWorkerThatIsDeadAlreadyWasNotTooSlow) {
  for (const bool report : {true, false}) {
    PoolOptions options = allowing_an_hour();
    options.manager.max_restarts = 1;
    options.manager.report_losses = report;
    Pool pool(options);
    pool.wait_for_births();
    pool.produce(0, 0, Order{Act::kStickOnce, 0, 4096, 0});
    wait_until_stuck(pool);
    kill_stuck_worker(pool);
    look_hours_later(pool);
    const auto element = pool.next(true);
    EXPECT_EQ(element->kind(), OutcomeKind::kElement);
    EXPECT_EQ(element->fault(), "");
    EXPECT_EQ(pool.manager().stats().restarts, 1U);
  }
}

// A zombie takes signals, so that they can be sent says nothing.
TEST_F(TimeOut, AWorkerThatNobodyHasReapedYetIsDead) {
  PoolOptions options = allowing_an_hour();
  options.manager.max_restarts = 1;
  Pool pool(options);
  pool.wait_for_births();
  pool.produce(0, 0, Order{Act::kStickOnce, 0, 4096, 0});
  wait_until_stuck(pool);
  ::kill(pool.server(), SIGSTOP);
  const pid_t worker = pool.blackboard().stuck_worker.load();
  const shm::FileDescriptor pidfd = workers::open_pidfd(worker);
  ::kill(worker, SIGKILL);
  EXPECT_TRUE(workers::wait_for_end(pidfd.get(), 60'000));
  look_hours_later(pool);
  ::kill(pool.server(), SIGCONT);
  EXPECT_EQ(pool.next(true)->fault(), "");
}

TEST_F(TimeOut, WhatCameToItsEndWhileNobodyLookedIsDelivered) {
  Pool pool(allowing(50ms, 1));
  pool.produce(0, 0, Order{Act::kWaitAtGate, 0, 4096, 0});
  while (pool.blackboard().at_gate.load() == 0) std::this_thread::yield();
  const auto& begun = control_memory().cell(0).item_begun;
  wait_until_over(begun.load(), 60ms);
  pool.open_gate(1);
  while (begun.load() != 0) std::this_thread::yield();
  EXPECT_EQ(pool.next(true)->fault(), "");
  EXPECT_EQ(pool.manager().stats().restarts, 0U);
}

TEST_F(TimeOut, AConsumerThatIsSlowKillsAtItsNextLook) {
  Pool pool(allowing(50ms, 1));
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  wait_until_over(wait_until_stuck(pool), 60ms);
  EXPECT_EQ(pool.manager().poll(true), workers::Manager::State::kPending);
  EXPECT_EQ(pool.next(true)->kind(), OutcomeKind::kTimedOut);
}

// The kill hits an item that is not the one it was for: that one has cost nothing.
TEST_F(TimeOut, AJobThatTheWorkerHadComeOnToIsNotLost) {
  for (const bool report : {true, false}) {
    PoolOptions options = allowing_an_hour();
    options.manager.report_losses = report;
    options.manager.restart_workers = false;
    Pool pool(options);
    pool.wait_for_births();
    pool.produce(0, 0, Order{Act::kStickOnce, 0, 4096, 0});
    const std::uint64_t begun = wait_until_stuck(pool);
    look_hours_later(pool);  // kills
    control_memory().cell(0).item_begun.store(begun + 1);
    const auto element = pool.next(true);
    EXPECT_EQ(element->kind(), OutcomeKind::kElement);
    EXPECT_EQ(element->fault(), "");
    EXPECT_EQ(pool.manager().stats().restarts, 1U);
  }
}

TEST_F(TimeOut, AWorkerStuckInAPassThatWasGivenUpIsKilled) {
  Pool pool(allowing_an_hour());
  for (std::uint64_t pass = 0; pass < 3; ++pass) {
    pool.wait_for_births();
    pool.produce(pass, 0, Order{Act::kStick, 0, 0, 0});
    wait_until_stuck(pool, pass + 1);
    pool.abandon();
    look_hours_later(pool);
    pool.produce(pass, 1, {}, 0);
    const auto element = pool.next(true);
    EXPECT_EQ(element->fault(), "");
    EXPECT_EQ(element->position(), 1U);
  }
  EXPECT_EQ(pool.manager().stats().restarts, 3U);
}

// As an event loop waits: for the descriptor, without a bound.
TEST_F(TimeOut, WhoWaitsForTheDescriptorIsWoken) {
  Pool pool(allowing(50ms, 1));
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  workers::Manager& manager = pool.manager();
  while (manager.poll(true) != workers::Manager::State::kReady) {
    const auto sleep = manager.begin_sleep(true, true, false);
    if (sleep.needed) {
      pollfd entry{manager.descriptor(), POLLIN, 0};
      ASSERT_EQ(::poll(&entry, 1, -1), 1);
    }
    auto glance = sleep;
    glance.bounded = true;
    glance.nanoseconds = 0;
    manager.end_sleep(workers::Manager::sleep(glance, nullptr));
  }
  EXPECT_EQ(Element(manager.take(true)).kind(), OutcomeKind::kTimedOut);
}

}  // namespace
}  // namespace stook
