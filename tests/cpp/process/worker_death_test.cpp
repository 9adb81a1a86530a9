// Workers that are killed, exit or never start: no element is lost, none comes twice, and what a
// death costs is told.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

using shm::Error;
using shm::ErrorCode;
using workers::OutcomeKind;

class WorkerDeath : public ProcessTest {
 protected:
  // Kills a random worker now and then, at a moment of its work that nobody chose.
  static void maybe_kill(Pool& pool, std::mt19937& random, std::uint64_t one_in,
                         std::uint64_t& kills) {
    if (random() % one_in != 0) return;
    for (auto spin = random() % 30000; spin > 0; --spin) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    const std::vector<pid_t> pids = pool.manager().worker_pids();
    if (pids.empty()) return;
    ::kill(pids[random() % pids.size()], SIGKILL);
    ++kills;
  }

  static void survive_kills(bool ordered, std::uint32_t workers, std::uint32_t seed) {
    constexpr std::uint64_t kCount = 4000;
    PoolOptions options;
    options.manager.worker_count = workers;
    options.manager.per_worker_buffer_size = 4;
    options.manager.max_restarts = 1000;  // the same job may be hit again and again
    Pool pool(options);
    std::mt19937 random(seed);
    std::uint64_t kills = 0;
    Ledger ledger(kCount, ordered);
    std::vector<Element> kept;
    pool.run(
        0, kCount, ordered,
        [&](std::uint64_t) {
          Order order;
          order.act = random() % 4 == 0 ? Act::kMakeCopied : Act::kMake;
          if (random() % 16 == 0) order.act = Act::kMakeEnvelope;
          order.bytes = 8 * (random() % 3000);
          order.filler = random() % 16 == 0 ? 3000 : 0;
          return order;
        },
        [&](Element element) {
          ledger.take(element);
          // Some are kept beyond the death of the worker that made them.
          if (random() % 8 == 0) kept.push_back(std::move(element));
          if (kept.size() > 20) {
            EXPECT_EQ(kept.front().fault(), "") << "a kept element changed";
            kept.clear();
          }
          maybe_kill(pool, random, 20, kills);
        });
    ledger.check();
    for (const Element& element : kept) EXPECT_EQ(element.fault(), "");
    kept.clear();
    EXPECT_GE(kills, 100U);
    EXPECT_GT(pool.manager().stats().restarts, 0U);
    EXPECT_EQ(pool.manager().stats().outstanding_bytes, 0U)
        << "what dead workers handed over was not accounted for";
    EXPECT_EQ(pool.blackboard().wrong.load(), 0U);
  }
};

// Its elements are always there before it asks, so it never sleeps, where it would hear of it.
TEST_F(WorkerDeath, IsHeardOfByAConsumerThatNeverWaits) {
  Pool pool;
  for (std::uint64_t position = 0; position < 8; ++position) pool.produce(0, position, {});
  ASSERT_TRUE(pool.next(true));
  pool.wait_for_births();
  ::kill(pool.manager().worker_pids().front(), SIGKILL);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (pool.manager().stats().restarts == 0 && std::chrono::steady_clock::now() < end) {
    pool.manager().poll(true);
  }
  EXPECT_EQ(pool.manager().stats().restarts, 1U);
}

TEST_F(WorkerDeath, HundredsOfKillsLoseNothingInOrder) { survive_kills(true, 2, 1); }
TEST_F(WorkerDeath, HundredsOfKillsLoseNothingOutOfOrder) { survive_kills(false, 3, 2); }
TEST_F(WorkerDeath, HundredsOfKillsOfTheOnlyWorkerLoseNothing) { survive_kills(true, 1, 3); }

TEST_F(WorkerDeath, AJobThatKilledItsWorkerIsRunAgain) {
  for (const bool ordered : {true, false}) {
    Pool pool;
    Ledger ledger(40, ordered);
    pool.run(
        0, 40, ordered,
        [](std::uint64_t position) {
          return Order{position == 11 ? Act::kDieOnce : Act::kMake, 2000, 4096, 0};
        },
        [&](const Element& element) { ledger.take(element); });
    ledger.check();
    EXPECT_GE(pool.manager().stats().restarts, 1U);
    EXPECT_EQ(pool.blackboard().wrong.load(), 0U) << "the second run saw other arguments";
  }
}

TEST_F(WorkerDeath, WhatWasPublishedBeforeTheDeathIsDelivered) {
  PoolOptions options;
  options.manager.restart_workers = false;  // a job that were run again would be reported instead
  for (const bool ordered : {true, false}) {
    Pool pool(options);
    Ledger ledger(30, ordered);
    pool.run(
        0, 30, ordered,
        [](std::uint64_t position) {
          return Order{position % 5 == 0 ? Act::kDieAfterPublish : Act::kMake, 0, 20000, 0};
        },
        [&](const Element& element) { ledger.take(element); });
    ledger.check();
    EXPECT_EQ(pool.blackboard().started.load(), 30U);
  }
}

TEST_F(WorkerDeath, BytesCountedButNeverPublishedDoNotStayOutstanding) {
  PoolOptions options;
  options.manager.worker_count = 1;
  Pool pool(options);
  Ledger ledger(10, true);
  pool.run(
      0, 10, true,
      [](std::uint64_t position) {
        return Order{position == 4 ? Act::kDieHavingCounted : Act::kMake, 0, 4096, 0};
      },
      [&](const Element& element) { ledger.take(element); });
  ledger.check();
  EXPECT_EQ(pool.manager().stats().restarts, 1U);
  EXPECT_EQ(pool.manager().stats().outstanding_bytes, 0U);
}

TEST_F(WorkerDeath, WithoutRestartsExactlyTheLostJobIsReported) {
  PoolOptions options;
  options.manager.restart_workers = false;
  for (const bool ordered : {true, false}) {
    for (const Act act : {Act::kDie, Act::kDieWithArray}) {
      Pool pool(options);
      std::set<std::uint64_t> lost;
      std::uint64_t elements = 0;
      pool.run(
          0, 60, ordered,
          [act](std::uint64_t position) {
            return Order{position % 20 == 7 ? act : Act::kMake, 0, 4096, 0};
          },
          [&](const Element& element) {
            if (element.kind() == OutcomeKind::kWorkerDied) {
              lost.insert(element.position());
              EXPECT_EQ(element.outcome().attempts, 1U);
              EXPECT_TRUE(WIFSIGNALED(element.outcome().status));
              EXPECT_EQ(WTERMSIG(element.outcome().status), SIGKILL);
              EXPECT_GT(element.outcome().pid, 0);
              EXPECT_TRUE(element.outcome().blocks.empty());
            } else {
              EXPECT_EQ(element.fault(), "");
              ++elements;
            }
          });
      EXPECT_EQ(lost, (std::set<std::uint64_t>{7, 27, 47}));
      EXPECT_EQ(elements, 57U);
      EXPECT_EQ(pool.manager().stats().restarts, 3U) << "the worker itself is replaced";
    }
  }
}

TEST_F(WorkerDeath, AJobThatKillsEveryWorkerIsReportedAfterItsAttempts) {
  PoolOptions options;
  options.manager.max_restarts = 3;
  Pool pool(options);
  std::uint64_t elements = 0;
  std::uint64_t reports = 0;
  pool.run(
      0, 30, true,
      [](std::uint64_t position) {
        return Order{position == 9 ? Act::kDieWithArray : Act::kMake, 0, 4096, 0};
      },
      [&](const Element& element) {
        if (element.position() == 9) {
          EXPECT_EQ(element.kind(), OutcomeKind::kWorkerDied);
          EXPECT_EQ(element.outcome().attempts, 4U);
          ++reports;
        } else {
          EXPECT_EQ(element.fault(), "");
          ++elements;
        }
      });
  EXPECT_EQ(reports, 1U);
  EXPECT_EQ(elements, 29U);
}

TEST_F(WorkerDeath, AnExitWithCodeZeroIsADeathToo) {
  PoolOptions options;
  options.manager.restart_workers = false;
  Pool pool(options);
  pool.produce(0, 0, Order{Act::kExit, 0, 0, 0});
  pool.produce(0, 1, Order{});
  const auto lost = pool.next(true);
  ASSERT_TRUE(lost);
  EXPECT_EQ(lost->kind(), OutcomeKind::kWorkerDied);
  EXPECT_TRUE(WIFEXITED(lost->outcome().status));
  EXPECT_EQ(WEXITSTATUS(lost->outcome().status), 0);
  EXPECT_EQ(pool.next(true)->fault(), "");
}

TEST_F(WorkerDeath, WhatAWorkerStartedEndsWithIt) {
  PoolOptions options;
  options.manager.worker_count = 1;
  options.manager.restart_workers = false;
  Pool pool(options);
  pool.produce(0, 0, Order{Act::kLeaveChild, 0, 4096, 0});
  pool.produce(0, 1, Order{Act::kDie, 0, 0, 0});
  EXPECT_EQ(pool.next(true)->fault(), "");
  EXPECT_EQ(pool.next(true)->kind(), OutcomeKind::kWorkerDied);
  const pid_t child = pool.blackboard().child.load();
  ASSERT_GT(child, 0);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child) << "an orphan of the worker comes to the test";
  EXPECT_TRUE(WIFSIGNALED(status));
}

// ------------------------------------------------------------------ workers that do not start

TEST_F(WorkerDeath, AWorkerThatCannotBeSetUpSaysWhy) {
  PoolOptions options;
  options.startup = Startup::kError;
  Pool pool(options);
  pool.produce(0, 0, Order{});
  const auto element = pool.next(true);
  ASSERT_TRUE(element);
  EXPECT_EQ(element->kind(), OutcomeKind::kStartupError);
  EXPECT_EQ(element->text(), "the data set is not there");
  EXPECT_FALSE(pool.manager().can_produce());
  EXPECT_EQ(pool.next(true)->kind(), OutcomeKind::kStartupError) << "and goes on saying it";
}

// Passes that are given up while a worker runs its first job, which kills it: it can start.
TEST_F(WorkerDeath, AWorkerThatDiesInAJobThatWasGivenUpCouldStart) {
  PoolOptions options;
  options.manager.worker_count = 1;
  options.manager.max_restarts = 0;
  Pool pool(options);
  for (std::uint64_t pass = 0; pass < 3; ++pass) {
    pool.produce(pass, 0, Order{Act::kStick, 0, 0, 0});
    while (pool.blackboard().stuck.load() <= pass) pool.manager().poll(true);
    pool.abandon();
    ::kill(pool.blackboard().stuck_worker.load(), SIGKILL);
    while (pool.manager().stats().restarts <= pass) pool.manager().poll(true);
  }
  pool.produce(3, 0, {});
  EXPECT_EQ(pool.next(true)->fault(), "");
}

TEST_F(WorkerDeath, WorkersThatEndBeforeTheyRunAnythingAreNotReplacedForEver) {
  PoolOptions options;
  options.startup = Startup::kExit;
  Pool pool(options);
  pool.produce(0, 0, Order{});
  try {
    pool.next(true);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBroken);
    EXPECT_NE(std::string(error.what()).find("before they run anything"), std::string::npos)
        << error.what();
    EXPECT_NE(std::string(error.what()).find(std::to_string(17 << 8)), std::string::npos)
        << error.what();
  }
}

// ------------------------------------------------------------------ workers that publish nonsense

TEST_F(WorkerDeath, AWorkerThatLiesIsAnErrorNotACrash) {
  for (const Act lie : {Act::kLieAboutOffset, Act::kLieAboutId, Act::kLieAboutSize,
                        Act::kLieAboutOverflow, Act::kLieAboutSecond, Act::kLieAboutBlocks}) {
    PoolOptions options;
    options.manager.worker_count = 1;
    Pool pool(options);
    pool.produce(0, 0, Order{lie, 0, 0, 0});
    try {
      pool.next(true);
      ADD_FAILURE() << "believed lie " << static_cast<int>(lie);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBroken);
      EXPECT_NE(std::string(error.what()).find("published"), std::string::npos) << error.what();
    }
  }
}

TEST_F(WorkerDeath, GivingUpThePassOfALiarDoesNotThrow) {
  PoolOptions options;
  options.manager.worker_count = 1;
  Pool pool(options);
  pool.produce(0, 0, Order{Act::kLieAboutId, 0, 0, 0});
  while (pool.blackboard().lies.load() == 0) std::this_thread::yield();  // it waits in the ring
  pool.abandon();
  EXPECT_THROW(pool.next(true), Error);
}

}  // namespace
}  // namespace stook
