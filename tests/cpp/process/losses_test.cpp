// Jobs that go on without the items that they have lost.
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
