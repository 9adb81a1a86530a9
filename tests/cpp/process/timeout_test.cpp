// Workers that are at one item for too long, and jobs that go on without what they have lost.
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
#include "tests/cpp/process/pool.h"
#include "workers/process.h"

namespace stook {
namespace {

using workers::Loss;
using workers::OutcomeKind;
using namespace std::chrono_literals;

// Of eight items each: which die, which stick, which are run although they were lost.
Order items(std::uint64_t die, std::uint64_t stick, std::uint64_t again = 0) {
  return Order{Act::kItems, 0, die | stick << 8 | again << 16, 0};
}

class TimeOut : public ProcessTest {
 protected:
  // Long enough for whatever does not stick, on a machine that is busy.
  static PoolOptions allowing(std::chrono::nanoseconds time, std::uint32_t workers = 2) {
    PoolOptions options;
    options.manager.worker_count = workers;
    options.manager.element_timeout = time;
    options.manager.max_restarts = 0;
    return options;
  }
  static std::vector<Loss> losses_of(const Element& element) {
    const std::string text = element.text();
    std::vector<Loss> losses((text.size() - sizeof(ElementHead)) / sizeof(Loss));
    if (!losses.empty()) {
      std::memcpy(losses.data(), text.data() + sizeof(ElementHead), losses.size() * sizeof(Loss));
    }
    return losses;
  }
  // No item is late unless the test says that so much time has gone by.
  static PoolOptions allowing_an_hour() {
    PoolOptions options = allowing(kHour, 1);
    options.manager.clock = []() noexcept -> std::uint64_t {
      return workers::monotonic_nanoseconds() + passed_;
    };
    return options;
  }
  // Has the manager look once as if more than an hour had gone by, since the last such look too.
  static void look_hours_later(Pool& pool) {
    hours_ += 2;
    passed_ = static_cast<std::uint64_t>((hours_ * kHour).count());
    pool.manager().poll(true);
    passed_ = 0;
  }
  // When the item of `worker` that sticks was begun; waits until it has.
  static std::uint64_t wait_until_stuck(Pool& pool, std::uint64_t jobs = 1) {
    while (pool.blackboard().stuck.load() < jobs) std::this_thread::yield();
    return control_memory().cell(0).item_begun.load();
  }
  // It is dead then. The manager hears of that when it looks.
  static void kill_stuck_worker(Pool& pool) {
    const pid_t worker = pool.blackboard().stuck_worker.load();
    ::kill(worker, SIGKILL);
    while (is_running(worker)) std::this_thread::yield();
  }
  static void wait_until_over(std::uint64_t begun, std::chrono::nanoseconds allowed) {
    const auto end = begun + static_cast<std::uint64_t>(allowed.count());
    while (workers::monotonic_nanoseconds() <= end) std::this_thread::yield();
  }

 private:
  static constexpr std::chrono::nanoseconds kHour = 1h;
  inline static std::uint64_t passed_ = 0;
  inline static std::uint64_t hours_ = 0;
};

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

// ------------------------------------------------------------------ losses

class Losses : public TimeOut {};

TEST_F(Losses, AJobComesWithoutTheItemsThatItLost) {
  for (const std::uint32_t restarts : {0U, 1U}) {
    PoolOptions options = allowing(1s);
    options.manager.report_losses = true;
    options.manager.max_restarts = restarts;
    Pool pool(options);
    pool.produce(0, 0, items(0b0000'1001, 0b0010'0000));
    pool.produce(0, 1, items(0, 0));
    const auto element = pool.next(true);
    ASSERT_EQ(element->kind(), OutcomeKind::kElement);
    EXPECT_EQ(element->head().bytes, 0b1101'0110U);
    const std::vector<Loss> losses = losses_of(*element);
    ASSERT_EQ(losses.size(), 3U);
    const std::uint32_t expected[] = {0, 3, 5};
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(losses[i].item, expected[i]);
      EXPECT_EQ(losses[i].flags & Loss::kTimedOut, i == 2 ? Loss::kTimedOut : 0U);
      EXPECT_EQ(losses[i].attempts, i == 2 ? 1 : restarts + 1);
      EXPECT_EQ(WTERMSIG(losses[i].status), SIGKILL);
      EXPECT_GT(losses[i].pid, 0);
      EXPECT_LT(losses[i].worker, 2U);
    }
    EXPECT_EQ(pool.next(true)->head().bytes, 0xFFU);
    EXPECT_EQ(pool.manager().stats().restarts, 2 * (restarts + 1) + 1);
  }
}

TEST_F(Losses, AllItemsOfAJobMayBeLost) {
  PoolOptions options = allowing(0s, 1);
  options.manager.report_losses = true;
  Pool pool(options);
  for (std::uint64_t round = 0; round < 3; ++round) {
    pool.produce(0, round, items(0xFF, 0));
    const auto element = pool.next(true);
    EXPECT_EQ(element->head().bytes, 0U);
    EXPECT_EQ(losses_of(*element).size(), 8U);
  }
  pool.produce(0, 3, items(0, 0));
  EXPECT_EQ(losses_of(*pool.next(true)).size(), 0U) << "a later job has an earlier one's losses";
  const auto block = pool.manager().allocate_arguments(64);
  ASSERT_TRUE(block);
  EXPECT_LT(block->ref.id, 4U) << "lists of losses were kept";
  pool.manager().free_arguments({&block->ref, 1});
}

// Each time that it is lost, it is so after as many deaths.
TEST_F(Losses, AnItemThatKillsAgainAndAgainEndsTheJob) {
  PoolOptions options = allowing(0s, 1);
  options.manager.max_restarts = 1;
  options.manager.report_losses = true;
  Pool pool(options);
  pool.produce(0, 0, items(4, 0, 4));
  const auto element = pool.next(true);
  EXPECT_EQ(element->kind(), OutcomeKind::kWorkerDied);
  EXPECT_EQ(element->outcome().attempts, 2U);
  EXPECT_EQ(pool.manager().stats().restarts, 6U);
}

TEST_F(Losses, DeathsOfAnEarlierJobInTheSameSlotAreNotCounted) {
  PoolOptions options = allowing(0s, 1);
  options.manager.max_restarts = 1;
  Pool pool(options);
  const std::uint64_t capacity = control_memory().job_capacity();
  for (std::uint64_t job = 0; job <= capacity; ++job) {
    const bool dies = job % capacity == 0;
    pool.produce(0, job, Order{dies ? Act::kDie : Act::kMake, 0, 4096, 0});
    const auto element = pool.next(true);
    ASSERT_EQ(element->kind(), dies ? OutcomeKind::kWorkerDied : OutcomeKind::kElement);
    if (dies) {
      EXPECT_EQ(element->outcome().attempts, 2U);
    }
  }
}

TEST_F(Losses, AnItemThatIsRunAgainAndAgainEndsTheJob) {
  for (const bool stick : {true, false}) {
    PoolOptions options = allowing(stick ? 100ms : 0ms, 1);
    options.manager.report_losses = true;
    Pool pool(options);
    pool.produce(0, 0, stick ? items(0, 4, 4) : items(4, 0, 4));
    EXPECT_EQ(pool.next(true)->kind(), stick ? OutcomeKind::kTimedOut : OutcomeKind::kWorkerDied);
    EXPECT_EQ(pool.manager().stats().restarts, 3U);
  }
}

TEST_F(Losses, AreGivenUpWithTheirPass) {
  PoolOptions options = allowing(0s, 1);
  options.manager.max_restarts = 10;  // of workers that have published nothing, too
  options.manager.report_losses = true;
  Pool pool(options);
  for (std::uint64_t round = 0; round < 3; ++round) {
    pool.produce(0, round, items(1, 2));
    while (pool.blackboard().stuck.load() <= round) pool.manager().poll(false);
    pool.abandon();
    // It may be stuck before the server's word of its birth was read.
    while (pool.manager().worker_pids().empty()) pool.manager().poll(false);
    ::kill(pool.manager().worker_pids().front(), SIGKILL);
    pool.produce(1, round, items(0, 0));
    EXPECT_EQ(pool.next(true)->head().bytes, 0xFFU);
  }
  const auto block = pool.manager().allocate_arguments(64);
  ASSERT_TRUE(block);
  EXPECT_LT(block->ref.id, 4U) << "lists of losses were kept";
  pool.manager().free_arguments({&block->ref, 1});
}

// Kills that no item is to blame for: one of them costs it a run, and others of its job nothing.
TEST_F(Losses, DeathsAtOtherItemsOfAJobAreNotCounted) {
  for (const bool report : {true, false}) {
    PoolOptions options = allowing_an_hour();
    options.manager.max_restarts = 1;
    options.manager.report_losses = report;
    Pool pool(options);
    pool.produce(0, 0, items(0, 1U << 1));
    // It sticks at item 1 each time; the progress says where it would be.
    std::uint64_t deaths = 0;
    const auto kill_at = [&](std::uint64_t item) {
      wait_until_stuck(pool, ++deaths);
      control_memory().cell(0).progress.store(workers::progress_word(0, item + 1));
      kill_stuck_worker(pool);
      while (pool.manager().stats().restarts < deaths) pool.manager().poll(true);
    };
    for (const std::uint64_t item : {1U, 4U, 7U, 4U}) {
      EXPECT_EQ(pool.manager().poll(true), workers::Manager::State::kPending);
      kill_at(item);
    }
    if (report) {
      kill_at(1);
      const auto element = pool.next(true);
      ASSERT_EQ(element->kind(), OutcomeKind::kElement);
      const std::vector<Loss> losses = losses_of(*element);
      ASSERT_EQ(losses.size(), 2U);
      EXPECT_EQ(losses[0].item, 4U);
      EXPECT_EQ(losses[0].attempts, 2U);
      EXPECT_EQ(losses[1].item, 1U);
      EXPECT_EQ(losses[1].attempts, 2U);
    } else {
      const auto element = pool.next(true);
      EXPECT_EQ(element->kind(), OutcomeKind::kWorkerDied);
      EXPECT_EQ(element->outcome().attempts, 2U);
      EXPECT_EQ(element->outcome().begun, 5U);
    }
  }
}

// Killed between its claim and its first item: no item is to blame.
TEST_F(Losses, AJobThatHadNotBegunHasLostNothing) {
  for (const bool report : {true, false}) {
    PoolOptions options = allowing_an_hour();
    options.manager.report_losses = report;
    Pool pool(options);
    pool.produce(0, 0, Order{Act::kStickOnce, 0, 4096, 0});
    wait_until_stuck(pool);
    control_memory().cell(0).progress.store(0);
    kill_stuck_worker(pool);
    const auto element = pool.next(true);
    EXPECT_EQ(element->kind(), OutcomeKind::kElement);
    EXPECT_EQ(element->fault(), "");
  }
}

// What was lost of a job for one worker is told to that one's successor, and nobody else runs it.
TEST_F(Losses, AJobForOneWorkerStaysItsOwn) {
  PoolOptions options = allowing(0s, 3);
  options.manager.report_losses = true;
  Pool pool(options);
  for (std::uint32_t worker = 0; worker < 3; ++worker) {
    pool.produce(0, worker, items((0b0100'0001U << worker) & 0xFFU, 0), worker);
    pool.produce(1, worker, items(0, 0), worker);
  }
  for (std::uint32_t worker = 0; worker < 3; ++worker) {
    const auto element = pool.next(true);
    ASSERT_EQ(element->kind(), OutcomeKind::kElement);
    EXPECT_EQ(element->outcome().worker, worker);
    const std::uint64_t lost = (0b0100'0001U << worker) & 0xFFU;
    EXPECT_EQ(element->head().bytes, 0xFFU ^ lost);
    for (const Loss& loss : losses_of(*element)) EXPECT_EQ(loss.worker, worker);
    const auto other = pool.next(true);
    EXPECT_EQ(other->outcome().worker, worker);
    EXPECT_EQ(other->head().bytes, 0xFFU);
  }
  EXPECT_EQ(pool.manager().stats().restarts, 5U);
}

TEST_F(Losses, AJobForOneWorkerThatIsStuckStaysItsOwn) {
  PoolOptions options = allowing_an_hour();
  options.manager.worker_count = 2;
  options.manager.report_losses = true;
  Pool pool(options);
  pool.wait_for_births(2);
  pool.produce(0, 0, items(0, 1U << 3), 1);
  pool.produce(0, 1, items(0, 0), 0);
  wait_until_stuck(pool);
  look_hours_later(pool);
  const auto element = pool.next(true);
  EXPECT_EQ(element->outcome().worker, 1U);
  EXPECT_EQ(element->head().bytes, 0xFFU ^ (1U << 3));
  const std::vector<Loss> losses = losses_of(*element);
  ASSERT_EQ(losses.size(), 1U);
  EXPECT_EQ(losses[0].flags, Loss::kTimedOut);
  EXPECT_EQ(losses[0].worker, 1U);
  EXPECT_EQ(pool.next(true)->outcome().worker, 0U);
}

// Items that are stuck, and kills from outside: each job comes once, and what it lacks it has lost.
// The time is long enough for a sanitizer to pass over an item that was lost: one that is late
// again there would end the job.
TEST_F(Losses, KillsAtAnyInstantCostNoMoreThanTheirItem) {
  for (const bool ordered : {true, false}) {
    PoolOptions options = allowing(50ms, 3);
    options.manager.max_restarts = 1000;
    options.manager.report_losses = true;
    Pool pool(options);
    std::mt19937 random(11);
    std::uint64_t next = 0;
    std::vector<std::uint32_t> seen(150);
    pool.run(
        0, 150, ordered,
        [&](std::uint64_t) {
          Order order = items(0, random() % 16 == 0 ? 1U << random() % 8 : 0);
          order.spin = random() % 600'000;
          return order;
        },
        [&](const Element& element) {
          ASSERT_EQ(element.kind(), OutcomeKind::kElement);
          if (ordered) {
            EXPECT_EQ(element.position(), next++);
          }
          ++seen[element.position()];
          std::uint64_t lost = 0;
          for (const Loss& loss : losses_of(element)) {
            lost |= std::uint64_t{1} << loss.item;
            EXPECT_EQ(loss.flags, Loss::kTimedOut) << "a thousand deaths are allowed";
          }
          EXPECT_EQ(element.head().bytes ^ lost, 0xFFU);
          const std::vector<pid_t> pids = pool.manager().worker_pids();
          if (random() % 8 == 0 && !pids.empty()) ::kill(pids[random() % pids.size()], SIGKILL);
        });
    for (const std::uint32_t count : seen) EXPECT_EQ(count, 1U);
    EXPECT_GT(pool.manager().stats().restarts, 0U);
  }
}

}  // namespace
}  // namespace stook
