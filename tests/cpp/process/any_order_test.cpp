// Jobs without an order among them: what a pool's tasks are.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <cstdint>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

using workers::Manager;
using workers::OutcomeKind;

class AnyOrder : public ProcessTest {
 protected:
  static PoolOptions options(std::uint32_t workers, std::uint32_t buffer = 1) {
    PoolOptions options;
    options.manager.worker_count = workers;
    options.manager.per_worker_buffer_size = buffer;
    options.manager.any_order = true;
    options.manager.restart_workers = false;
    return options;
  }
  // Returns when user code of so many workers stands at the gate.
  static void wait_at_gate(Pool& pool, std::uint64_t workers) {
    while (pool.blackboard().at_gate.load() < workers) std::this_thread::yield();
  }
};

TEST_F(AnyOrder, OneThatTakesLongHoldsNoOtherBack) {
  Pool pool(options(2));
  Order slow;
  slow.act = Act::kWaitAtGate;
  slow.filler = 200;  // checked again once the gate is open: nobody may write there meanwhile
  pool.produce(0, 0, slow);
  wait_at_gate(pool, 1);
  // Many times round the ring, past the slot of the one that waits.
  constexpr std::uint64_t kOthers = 1000;
  std::uint64_t produced = 1;
  std::set<std::uint64_t> seen;
  while (seen.size() < kOthers) {
    while (produced <= kOthers && pool.manager().can_produce()) pool.produce(0, produced++, {});
    auto element = pool.next(false);
    ASSERT_TRUE(element);
    EXPECT_EQ(element->fault(), "");
    EXPECT_NE(element->position(), 0U);
    seen.insert(element->position());
  }
  EXPECT_EQ(pool.manager().under_way(), 1U);
  pool.open_gate(1);
  const auto last = pool.next(false);
  ASSERT_TRUE(last);
  EXPECT_EQ(last->position(), 0U);
  EXPECT_EQ(pool.manager().poll(false), Manager::State::kIdle);
  EXPECT_EQ(pool.blackboard().wrong.load(), 0U);
  EXPECT_EQ(pool.blackboard().started.load(), kOthers + 1);
}

TEST_F(AnyOrder, TheWindowCountsWhatIsUnderWayAlone) {
  Pool pool(options(2, 2));
  ASSERT_EQ(pool.manager().window(), 6U);
  Order slow;
  slow.act = Act::kWaitAtGate;
  pool.produce(0, 0, slow);
  wait_at_gate(pool, 1);
  for (std::uint64_t position = 1; position < 50; ++position) {
    ASSERT_TRUE(pool.manager().can_produce()) << position;
    pool.produce(0, position, {});
    ASSERT_TRUE(pool.next(false));
  }
  for (std::uint64_t i = 0; i < 5; ++i) pool.produce(0, 50 + i, {});
  EXPECT_FALSE(pool.manager().can_produce());
  pool.open_gate(1);
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(pool.next(false));
  EXPECT_EQ(pool.manager().under_way(), 0U);
}

TEST_F(AnyOrder, ACancelledJobNeverRunsAndHasNoOutcome) {
  Pool pool(options(1, 15));
  Manager& manager = pool.manager();
  Order slow;
  slow.act = Act::kWaitAtGate;
  pool.produce(0, 0, slow);
  wait_at_gate(pool, 1);
  for (std::uint64_t position = 1; position < 6; ++position) pool.produce(0, position, {});
  EXPECT_TRUE(manager.is_claimed(0));
  EXPECT_FALSE(manager.is_claimed(2));
  EXPECT_FALSE(manager.cancel(0)) << "a worker has it";
  EXPECT_TRUE(manager.cancel(2));
  EXPECT_TRUE(manager.cancel(5));
  EXPECT_FALSE(manager.cancel(5)) << "twice";
  EXPECT_FALSE(manager.cancel(77)) << "there is none";
  EXPECT_EQ(manager.under_way(), 4U);
  pool.open_gate(1);
  std::set<std::uint64_t> seen;
  for (int i = 0; i < 4; ++i) seen.insert(pool.next(false)->position());
  EXPECT_EQ(seen, (std::set<std::uint64_t>{0, 1, 3, 4}));
  EXPECT_FALSE(manager.cancel(1)) << "it is over";
  EXPECT_FALSE(manager.is_claimed(1));
  EXPECT_EQ(manager.poll(false), Manager::State::kIdle);
  EXPECT_EQ(pool.blackboard().started.load(), 4U);
}

TEST_F(AnyOrder, ALostJobIsReportedAndTheDeathTold) {
  Pool pool(options(2));
  for (std::uint64_t position = 0; position < 4; ++position) {
    Order order;
    if (position == 1) order.act = Act::kDie;
    pool.produce(0, position, order);
  }
  std::uint64_t died = 0;
  pid_t pid = 0;
  for (int i = 0; i < 4; ++i) {
    const auto element = pool.next(false);
    ASSERT_TRUE(element);
    if (element->kind() != OutcomeKind::kWorkerDied) continue;
    ++died;
    EXPECT_EQ(element->position(), 1U);
    EXPECT_EQ(element->outcome().begun, 0U);
    pid = element->outcome().pid;
  }
  EXPECT_EQ(died, 1U);
  EXPECT_EQ(pool.blackboard().started.load(), 4U) << "a lost job is never run again";
  const auto deaths = pool.manager().take_deaths();
  ASSERT_EQ(deaths.size(), 1U);
  EXPECT_EQ(deaths[0].pid, pid);
  EXPECT_TRUE(WIFSIGNALED(deaths[0].status) && WTERMSIG(deaths[0].status) == SIGKILL);
  EXPECT_TRUE(pool.manager().take_deaths().empty());
}

TEST_F(AnyOrder, TheDeathOfAnIdleWorkerIsToldToo) {
  Pool pool(options(1));
  pool.produce(0, 0, {});
  ASSERT_TRUE(pool.next(false));
  Manager& manager = pool.manager();
  // Its result may be here before the server's word of its birth.
  while (manager.worker_pids().empty()) manager.poll(false);
  const pid_t pid = manager.worker_pids().at(0);
  ::kill(pid, SIGKILL);
  std::vector<workers::Death> deaths;
  while (deaths.empty()) {
    manager.wait(false, nullptr);
    deaths = manager.take_deaths();
  }
  EXPECT_EQ(deaths.at(0).pid, pid);
  // It has been replaced.
  pool.produce(0, 1, {});
  ASSERT_TRUE(pool.next(false));
  EXPECT_EQ(manager.stats().restarts, 1U);
}

TEST_F(AnyOrder, OthersProduceWhileOneSleeps) {
  Pool pool(options(2, 8));
  Manager& manager = pool.manager();
  constexpr std::uint64_t kCount = 2000;
  std::mutex mutex;
  std::thread producer([&] {
    for (std::uint64_t position = 0; position < kCount;) {
      {
        const std::lock_guard lock(mutex);
        if (manager.can_produce()) {
          pool.produce(0, position++, {});
          manager.ring_workers();
          continue;
        }
      }
      std::this_thread::yield();
    }
  });
  std::uint64_t seen = 0;
  while (seen < kCount) {
    Manager::Sleep plan;
    {
      const std::lock_guard lock(mutex);
      while (manager.poll(false) == Manager::State::kReady) {
        const Element element(manager.take(false));
        EXPECT_EQ(element.fault(), "");
        ++seen;
      }
      plan = manager.begin_sleep(false, true);
    }
    const Manager::Waking waking =
        plan.needed && seen < kCount ? Manager::sleep(plan, nullptr) : Manager::Waking{};
    const std::lock_guard lock(mutex);
    manager.end_sleep(waking);
  }
  producer.join();
  EXPECT_EQ(manager.under_way(), 0U);
}

}  // namespace
}  // namespace stook
