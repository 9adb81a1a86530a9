// Jobs that are bound to one worker: that one runs them, or its successor, whatever becomes of it,
// and nobody waits for a worker that no job waits for.
#include <gtest/gtest.h>

#include <csignal>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

using workers::OutcomeKind;
using Worker = std::optional<std::uint32_t>;

class BoundJobs : public ProcessTest {
 protected:
  static PoolOptions three_workers() {
    PoolOptions options;
    options.manager.worker_count = 3;
    return options;
  }

  // Deals `count` jobs and checks that each was run where it was to be.
  static void run(Pool& pool, std::uint64_t count, bool ordered,
                  const std::function<Worker(std::uint64_t)>& worker_of,
                  const std::function<Order(std::uint64_t)>& order,
                  const std::function<void(Element)>& take) {
    std::uint64_t produced = 0;
    for (;;) {
      while (produced < count && pool.manager().can_produce()) {
        pool.produce(0, produced, order(produced), worker_of(produced));
        ++produced;
      }
      std::optional<Element> element = pool.next(ordered);
      if (!element) {
        if (produced == count) return;
        continue;
      }
      const Worker worker = worker_of(element->position());
      if (worker) {
        ASSERT_EQ(element->outcome().worker, *worker) << "element " << element->position();
      }
      take(std::move(*element));
    }
  }
};

Worker in_turn(std::uint64_t position) { return static_cast<std::uint32_t>(position % 3); }
// Some for one, some for anybody.
Worker mixed(std::uint64_t position) { return position % 5 < 2 ? in_turn(position) : Worker(); }
Order make(std::uint64_t) { return {}; }

TEST_F(BoundJobs, EachIsRunByItsWorker) {
  for (const bool ordered : {true, false}) {
    for (const auto worker_of : {&in_turn, &mixed}) {
      Pool pool(three_workers());
      Ledger ledger(600, ordered);
      run(pool, 600, ordered, worker_of, make, [&](const Element& one) { ledger.take(one); });
      ledger.check();
    }
  }
}

// Every worker sleeps, and one job comes: whoever else were rung would leave it where it is.
TEST_F(BoundJobs, TheOneThatSleepsIsRung) {
  Pool pool(three_workers());
  for (std::uint64_t position = 0; position < 300; ++position) {
    const std::uint32_t worker = position % 7 < 3 ? 2 : *in_turn(position);
    pool.produce(0, position, {}, worker);
    const auto element = pool.next(true);
    ASSERT_TRUE(element);
    EXPECT_EQ(element->position(), position);
    EXPECT_EQ(element->outcome().worker, worker);
  }
}

TEST_F(BoundJobs, OthersDoNotWaitForAWorkerThatIsBusy) {
  Pool pool(three_workers());
  pool.produce(0, 0, Order{Act::kWaitAtGate, 0, 4096, 0}, 0);
  pool.produce(0, 1, {}, 0);
  std::set<std::uint64_t> seen;
  for (std::uint64_t position = 2; position < 12; ++position) {
    pool.produce(0, position, {}, position % 2 == 0 ? Worker(1) : Worker());
  }
  for (int i = 0; i < 10; ++i) seen.insert(pool.next(false)->position());
  EXPECT_EQ(seen.count(0) + seen.count(1), 0U);
  EXPECT_EQ(seen.size(), 10U);
  pool.open_gate(1);
  EXPECT_EQ(pool.next(true)->outcome().worker, 0U);
  EXPECT_EQ(pool.next(true)->position(), 1U);
}

TEST_F(BoundJobs, AWorkerHasAsManyAsTheWindowHolds) {
  Pool pool(three_workers());
  Ledger ledger(200, true);
  run(
      pool, 200, true, [](std::uint64_t) { return Worker(1); }, make,
      [&](const Element& one) { ledger.take(one); });
  ledger.check();
  EXPECT_EQ(pool.manager().stats().restarts, 0U);
}

TEST_F(BoundJobs, ASuccessorTakesThem) {
  for (const bool ordered : {true, false}) {
    Pool pool(three_workers());
    Ledger ledger(60, ordered);
    run(
        pool, 60, ordered, in_turn,
        [](std::uint64_t position) {
          return Order{position == 13 ? Act::kDieOnce : Act::kMake, 0, 4096, 0};
        },
        [&](const Element& element) { ledger.take(element); });
    ledger.check();
    EXPECT_EQ(pool.manager().stats().restarts, 1U);
  }
}

// Killed while it sleeps, with nothing to do; then there is something.
TEST_F(BoundJobs, ASuccessorOfAnIdleWorkerTakesThem) {
  Pool pool(three_workers());
  for (std::uint64_t position = 0; position < 30; ++position) {
    pool.produce(0, position, {}, 1);
    const auto element = pool.next(true);
    ASSERT_TRUE(element);
    EXPECT_EQ(element->fault(), "");
    ::kill(element->head().pid, SIGKILL);
    pool.produce(1, position, {}, 1);
    const auto second = pool.next(true);
    ASSERT_TRUE(second);
    EXPECT_EQ(second->fault(), "");
    EXPECT_EQ(second->outcome().worker, 1U);
  }
}

TEST_F(BoundJobs, AJobThatKillsItsWorkerIsReported) {
  for (const std::uint32_t restarts : {0U, 2U}) {
    PoolOptions options = three_workers();
    options.manager.max_restarts = restarts;
    Pool pool(options);
    std::uint64_t elements = 0;
    run(
        pool, 30, true, in_turn,
        [](std::uint64_t position) {
          return Order{position == 10 ? Act::kDie : Act::kMake, 0, 4096, 0};
        },
        [&](const Element& element) {
          if (element.position() == 10) {
            EXPECT_EQ(element.kind(), OutcomeKind::kWorkerDied);
            EXPECT_EQ(element.outcome().attempts, restarts + 1);
          } else {
            EXPECT_EQ(element.fault(), "");
            ++elements;
          }
        });
    EXPECT_EQ(elements, 29U);
  }
}

void survive_kills(Pool& pool, std::uint64_t count, bool ordered,
                   const std::function<void(std::function<void(Element)>)>& run) {
  std::mt19937 random(ordered ? 5 : 6);
  std::uint64_t kills = 0;
  Ledger ledger(count, ordered);
  run([&](const Element& element) {
    ledger.take(element);
    if (random() % 12 != 0) return;
    for (auto spin = random() % 30000; spin > 0; --spin) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    const std::vector<pid_t> pids = pool.manager().worker_pids();
    if (pids.empty()) return;
    ::kill(pids[random() % pids.size()], SIGKILL);
    ++kills;
  });
  ledger.check();
  EXPECT_GE(kills, 50U);
  EXPECT_GT(pool.manager().stats().restarts, 0U);
  EXPECT_EQ(pool.manager().stats().outstanding_bytes, 0U);
}

TEST_F(BoundJobs, KillsAtAnyInstantLoseNothing) {
  for (const bool ordered : {true, false}) {
    for (const auto worker_of : {&in_turn, &mixed}) {
      PoolOptions options = three_workers();
      options.manager.max_restarts = 1000;
      Pool pool(options);
      std::mt19937 random(3);
      survive_kills(pool, 1000, ordered, [&](const std::function<void(Element)>& take) {
        run(
            pool, 1000, ordered, worker_of,
            [&](std::uint64_t) {
              return Order{random() % 4 == 0 ? Act::kMakeCopied : Act::kMake, 0,
                           8 * (random() % 3000), 0};
            },
            take);
      });
    }
  }
}

TEST_F(BoundJobs, AreGivenUpWithTheirPass) {
  Pool pool(three_workers());
  pool.produce(0, 0, Order{Act::kWaitAtGate, 0, 4096, 0}, 0);
  pool.produce(0, 1, Order{Act::kRaise, 0, 4096, 0}, 0);
  pool.produce(0, 2, Order{Act::kRaise, 0, 4096, 0});
  while (pool.blackboard().at_gate.load() == 0) pool.manager().poll(false);
  pool.abandon();
  EXPECT_EQ(pool.manager().under_way(), 0U);
  // The next pass: worker 0 still has the old one's job.
  pool.produce(1, 0, {}, 1);
  pool.produce(1, 1, {}, 0);
  const auto first = pool.next(true);
  EXPECT_EQ(first->epoch(), 1U);
  EXPECT_EQ(first->outcome().worker, 1U);
  pool.open_gate(1);
  const auto second = pool.next(true);
  EXPECT_EQ(second->epoch(), 1U);
  EXPECT_EQ(second->outcome().worker, 0U);
  EXPECT_EQ(pool.manager().poll(true), workers::Manager::State::kIdle);
}

TEST_F(BoundJobs, TheNextToDeliverNeverWaitsForMemory) {
  for (const bool ordered : {true, false}) {
    PoolOptions options = three_workers();
    options.manager.per_worker_buffer_size = 8;
    options.manager.memory_limit = 4 * 4096;
    Pool pool(options);
    Ledger ledger(300, ordered);
    std::vector<Element> kept;
    run(pool, 300, ordered, mixed, make, [&](Element element) {
      ledger.take(element);
      kept.push_back(std::move(element));
    });
    ledger.check();
  }
}

TEST_F(BoundJobs, AWorkerThatCannotBeIsAnError) {
  Pool pool(three_workers());
  try {
    pool.produce(0, 0, {}, 3);
    FAIL() << "no error";
  } catch (const shm::Error& error) {
    EXPECT_EQ(error.code(), shm::ErrorCode::kInvalidArgument);
    EXPECT_NE(std::string(error.what()).find("worker 3"), std::string::npos) << error.what();
  }
  pool.produce(0, 0, {}, 2);
  EXPECT_EQ(pool.next(true)->fault(), "") << "the manager is as it was";

  PoolOptions options = three_workers();
  options.manager.any_order = true;
  Pool unordered(options);
  EXPECT_THROW(unordered.produce(0, 0, {}, 1), shm::Error);
}

}  // namespace
}  // namespace stook
