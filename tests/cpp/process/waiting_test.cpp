// What ends a wait: elements, signals, other threads, the caller's own descriptors.
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <ctime>
#include <thread>

#include "shm/eventfd.h"
#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

using workers::Manager;

std::atomic<std::uint64_t> signals_seen{0};

// A handler without SA_RESTART, so that every system call of this process may end early.
class Waiting : public ProcessTest {
 protected:
  void SetUp() override {
    ProcessTest::SetUp();
    struct sigaction action{};
    action.sa_handler = [](int) { signals_seen.fetch_add(1); };
    ASSERT_EQ(::sigaction(SIGUSR1, &action, &before_), 0);
    signals_seen = 0;
  }
  void TearDown() override {
    ProcessTest::TearDown();
    ::sigaction(SIGUSR1, &before_, nullptr);
  }

 private:
  struct sigaction before_{};
};

TEST_F(Waiting, AStormOfSignalsLosesNothing) {
  timer_t timer{};
  sigevent event{};
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGUSR1;
  for (const bool ordered : {true, false}) {
    Pool pool;  // started before the timer: children inherit no timers
    ASSERT_EQ(::timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    const itimerspec every{{0, 150000}, {0, 150000}};
    ASSERT_EQ(::timer_settime(timer, 0, &every, nullptr), 0);
    Ledger ledger(2000, ordered);
    pool.run(
        0, 2000, ordered,
        [](std::uint64_t position) {
          return Order{position % 100 == 50 ? Act::kDieOnce : Act::kMake, 0, 8000, 20000};
        },
        [&](const Element& element) { ledger.take(element); });
    pool.manager().close();
    ::timer_delete(timer);
    ledger.check();
  }
  EXPECT_GT(signals_seen.load(), 0U);
}

TEST_F(Waiting, ASignalThatArrivedWhileBlockedEndsTheWaitAtOnce) {
  Pool pool;
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  // No element will ever come, and no worker is about to: nothing but the signal ends this.
  while (pool.manager().worker_pids().size() < 2) pool.manager().wait(true, nullptr);
  sigset_t blocked;
  sigset_t unblocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  ASSERT_EQ(::pthread_sigmask(SIG_BLOCK, &blocked, &unblocked), 0);
  ::raise(SIGUSR1);
  EXPECT_EQ(signals_seen.load(), 0U);
  while (signals_seen.load() == 0) pool.manager().wait(true, &unblocked);
  EXPECT_EQ(signals_seen.load(), 1U);
  ::raise(SIGUSR1);
  EXPECT_EQ(pool.manager().wait(true, &unblocked), Manager::WaitEnd::kInterrupted);
  ::pthread_sigmask(SIG_SETMASK, &unblocked, nullptr);
}

TEST_F(Waiting, AWaitWithoutASignalMaskIsBounded) {
  Pool pool;
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  for (int i = 0; i < 3; ++i) {
    while (pool.manager().wait(true, nullptr) != Manager::WaitEnd::kTimeOut) {
    }
  }
}

TEST_F(Waiting, AnotherThreadEndsTheWait) {
  Pool pool;
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  while (pool.manager().worker_pids().size() < 2) pool.manager().wait(true, nullptr);
  sigset_t unblocked;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &unblocked);
  for (int i = 0; i < 200; ++i) {
    std::thread waker([&] { pool.manager().wake(); });
    EXPECT_EQ(pool.manager().wait(true, &unblocked), Manager::WaitEnd::kProgress);
    waker.join();
  }
}

TEST_F(Waiting, ADescriptorOfTheCallersEndsTheWait) {
  const shm::FileDescriptor side = shm::create_eventfd(shm::EventWait::kNonBlocking);
  Pool pool;
  pool.manager().watch_side_channel(side.get());
  pool.produce(0, 0, Order{Act::kStick, 0, 0, 0});
  shm::ring_eventfd(side.get());
  while (pool.manager().wait(true, nullptr) != Manager::WaitEnd::kSideChannel) {
  }
  std::uint64_t rings = 0;
  ASSERT_EQ(::read(side.get(), &rings, sizeof rings), 8);
  pool.produce(0, 1, Order{});
  EXPECT_EQ(pool.next(false)->position(), 1U);
}

TEST_F(Waiting, ASignalToTheServerIsHeardAndEndsNothing) {
  Pool pool;
  Ledger ledger(500, true);
  pool.run(
      0, 500, true, [](std::uint64_t) { return Order{Act::kMake, 0, 4096, 10000}; },
      [&](const Element& element) {
        ledger.take(element);
        if (element.position() % 10 == 0) ::kill(pool.server(), SIGUSR2);
      });
  ledger.check();
  while (pool.blackboard().interrupts.load() == 0) {
    ::kill(pool.server(), SIGUSR2);
    std::this_thread::yield();
  }
}

TEST_F(Waiting, AStoppedWorkerGoesOnWhereItWas) {
  Pool pool;
  Ledger ledger(300, true);
  pool.run(
      0, 300, true, [](std::uint64_t) { return Order{}; },
      [&](const Element& element) {
        ledger.take(element);
        for (const pid_t pid : pool.manager().worker_pids()) {
          ::kill(pid, SIGSTOP);
          ::kill(pid, SIGCONT);
        }
      });
  ledger.check();
  EXPECT_EQ(pool.manager().stats().restarts, 0U);
}

}  // namespace
}  // namespace stook
