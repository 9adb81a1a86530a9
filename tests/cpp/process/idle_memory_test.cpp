// What idle workers do with memory, and what the parent can tell of it.
#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "shm/block_allocator.h"
#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

using workers::WorkerMemory;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// Looks again and again until `there` holds; false when it has not for half a minute.
bool comes_true(const std::function<bool()>& there) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!there()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

PoolOptions options(std::uint32_t worker_count, std::chrono::milliseconds idle_pause,
                    std::uint64_t memory_limit = std::uint64_t{1} << 30) {
  PoolOptions options;
  options.manager = {worker_count, 4, memory_limit, true, 2};
  options.idle_pause = idle_pause;
  return options;
}

std::uint64_t sum(const Pool& pool, std::uint64_t WorkerMemory::* figure) {
  std::uint64_t bytes = 0;
  for (const WorkerMemory& worker : const_cast<Pool&>(pool).manager().memory()) {
    bytes += worker.*figure;
  }
  return bytes;
}

std::string faults_of(const std::vector<Element>& elements) {
  std::string faults;
  for (const Element& element : elements) faults += element.fault();
  return faults;
}

// The last argument but two of the system call that a process sleeps in, if it is epoll_wait: its
// time-out. Empty if it sleeps elsewhere, or runs.
std::string sleeps_for(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/syscall");
  std::string line;
  std::getline(file, line);
  std::istringstream words(line);
  std::string number, watch, events, count, timeout;
  words >> number >> watch >> events >> count >> timeout;
  return count == "0x1" ? timeout : "";
}

bool sleeps_for_ever(pid_t pid) {
  return sleeps_for(pid) == "0xffffffff" || sleeps_for(pid) == "0xffffffffffffffff";
}

using IdleMemory = ProcessTest;

TEST_F(IdleMemory, WhatIsReturnedWhileWorkersSleepGoesBackToTheSystem) {
  Pool pool(options(3, std::chrono::milliseconds(5)));
  std::vector<Element> kept;
  pool.run(
      0, 300, true, [](std::uint64_t) { return Order{Act::kMake, 0, 200000, 0}; },
      [&](Element element) { kept.push_back(std::move(element)); });
  const std::uint64_t all = sum(pool, &WorkerMemory::live);
  EXPECT_GE(all, 300U * 200000);
  // The workers have given back what was idle before they are returned more.
  ASSERT_TRUE(comes_true([&] {
    for (const WorkerMemory& worker : pool.manager().memory()) {
      if (worker.idle > std::max(kMiB, worker.live / 16)) return false;
    }
    return true;
  }));
  EXPECT_GE(sum(pool, &WorkerMemory::touched), all) << "the parent still reads them";

  // In two halves: that the first is given back shows that they have looked, and are to look again.
  for (std::size_t i = 0; i < kept.size() / 2; ++i) {
    if (i % 10 != 0) kept[i].release();
  }
  const std::uint64_t half = 165 * shm::block_capacity(200000);
  ASSERT_TRUE(comes_true([&] { return sum(pool, &WorkerMemory::live) == half; }));
  for (std::size_t i = kept.size() / 2; i < kept.size(); ++i) {
    if (i % 10 != 0) kept[i].release();
  }
  const std::uint64_t live = 30 * shm::block_capacity(200000);
  EXPECT_TRUE(comes_true([&] { return sum(pool, &WorkerMemory::live) == live; }));
  for (const WorkerMemory& worker : pool.manager().memory()) {
    EXPECT_EQ(worker.mapped, worker.live + worker.idle);
    EXPECT_LE(worker.idle, kMiB);
    EXPECT_GE(worker.touched, worker.mapped);
    EXPECT_LE(worker.touched, worker.mapped + 64 * 1024) << "the ring, the header";
    EXPECT_EQ(worker.retired, 0U);
  }
  for (std::size_t i = 0; i < kept.size(); i += 10) EXPECT_EQ(kept[i].fault(), "");

  // And they work on, in what they kept and in what they carve anew.
  Ledger ledger(300, true);
  pool.run(
      1, 300, true, [](std::uint64_t) { return Order{Act::kMake, 0, 200000, 0}; },
      [&](const Element& element) { ledger.take(element); });
  ledger.check();
  for (std::size_t i = 0; i < kept.size(); i += 10) EXPECT_EQ(kept[i].fault(), "");
}

TEST_F(IdleMemory, AWorkerWakesByItselfOnlyWhileItsMemoryIsHeld) {
  {
    std::ifstream own("/proc/self/syscall");
    std::string line;
    if (!std::getline(own, line)) GTEST_SKIP() << "/proc/<pid>/syscall cannot be read here";
  }
  Pool pool(options(1, std::chrono::milliseconds(5)));
  pool.produce(0, 0, Order{Act::kMake, 0, 100000, 0});
  std::optional<Element> element = pool.next(true);
  pool.wait_for_births();
  const pid_t worker = pool.manager().worker_pids().at(0);
  ASSERT_TRUE(comes_true([&] { return sleeps_for(worker) == "0x5"; })) << sleeps_for(worker);
  EXPECT_FALSE(sleeps_for_ever(worker));
  element->release();
  EXPECT_TRUE(comes_true([&] { return sleeps_for_ever(worker); })) << sleeps_for(worker);
  EXPECT_EQ(sum(pool, &WorkerMemory::live), 0U);
  // From there a ring wakes it.
  pool.produce(0, 1, Order{Act::kMake, 0, 100000, 0});
  EXPECT_EQ(pool.next(true)->fault(), "");
}

TEST_F(IdleMemory, AWorkerThatSleepsForMemoryGivesBackIdleMemoryToo) {
  Pool pool(options(2, std::chrono::milliseconds(5), 8 * kMiB));
  std::vector<Element> kept;
  pool.run(
      0, 8, true, [](std::uint64_t) { return Order{Act::kMake, 0, 2 * kMiB, 0}; },
      [&](Element element) { kept.push_back(std::move(element)); });
  // More than the limit is held, so that nobody begins a job but the next one to deliver.
  ASSERT_GE(pool.manager().stats().outstanding_bytes, 8 * kMiB);
  for (std::uint64_t job = 0; job < 4; ++job) {
    pool.produce(1, job, Order{Act::kMake, 0, 100000, 0});
  }
  for (std::size_t i = 0; i < 3; ++i) kept[i].release();  // 10 MiB are still held
  ASSERT_GE(pool.manager().stats().outstanding_bytes, 8 * kMiB);
  EXPECT_TRUE(comes_true([&] {
    return sum(pool, &WorkerMemory::live) <= 11 * kMiB &&
           sum(pool, &WorkerMemory::idle) <= 2 * kMiB;
  }));
  EXPECT_LT(pool.blackboard().started.load(), 12U) << "nobody was short of memory";
  for (std::size_t i = 3; i < kept.size(); ++i) EXPECT_EQ(kept[i].fault(), "");
  kept.clear();
  for (std::uint64_t job = 0; job < 4; ++job) EXPECT_EQ(pool.next(true)->fault(), "");
}

TEST_F(IdleMemory, AJobThatComesWhileMemoryIsGivenBackIsNotLost) {
  Pool pool(options(1, std::chrono::milliseconds(1)));
  for (std::uint64_t round = 0; round < 30; ++round) {
    std::vector<Element> elements;
    pool.run(
        round, 6, true, [](std::uint64_t) { return Order{Act::kMake, 0, 8 * kMiB, 0}; },
        [&](Element element) { elements.push_back(std::move(element)); });
    ASSERT_EQ(faults_of(elements), "");
    const std::uint64_t before = sum(pool, &WorkerMemory::touched);
    elements.clear();
    // Steps of 16 MiB: it has begun, and goes on.
    while (sum(pool, &WorkerMemory::touched) > before - 16 * kMiB) {
    }
    pool.produce(round, 6, Order{Act::kMake, 0, 4096, 0});
    ASSERT_EQ(pool.next(true)->fault(), "");
  }
}

TEST_F(IdleMemory, WakingByTheClockLosesNoJob) {
  for (const bool ordered : {true, false}) {
    Pool pool(options(3, std::chrono::milliseconds(1)));
    Ledger ledger(3000, ordered);
    std::vector<Element> kept;
    pool.run(
        0, 3000, ordered,
        [](std::uint64_t position) { return Order{Act::kMake, 0, 4096 + position % 5 * 8192, 0}; },
        [&](Element element) {
          ledger.take(element);
          if (element.position() % 50 == 0) kept.push_back(std::move(element));
          // The workers run dry, and their clocks meet the next rings.
          if (element.position() % 20 == 0) {
            std::this_thread::sleep_for(std::chrono::microseconds(900));
          }
        });
    ledger.check();
    EXPECT_EQ(faults_of(kept), "");
  }
}

TEST_F(IdleMemory, WhatIsHeldOfADeadWorkerIsRetired) {
  Pool pool(options(1, std::chrono::milliseconds(5)));
  pool.produce(0, 0, Order{Act::kMake, 0, 100000, 0});
  pool.produce(0, 1, Order{Act::kMake, 0, 300000, 0});
  std::optional<Element> first = pool.next(true);
  std::optional<Element> second = pool.next(true);
  pool.produce(0, 2, Order{Act::kDieOnce, 0, 50000, 0});
  std::optional<Element> third = pool.next(true);
  ASSERT_EQ(third->fault(), "");

  const std::uint64_t of_first = shm::block_capacity(100000);
  const std::uint64_t of_second = shm::block_capacity(300000);
  EXPECT_EQ(pool.manager().memory().at(0).retired, of_first + of_second);
  EXPECT_EQ(pool.manager().memory().at(0).live, shm::block_capacity(50000)) << "the new one's own";
  first->release();
  EXPECT_EQ(pool.manager().memory().at(0).retired, of_second);

  const auto ledger = pool.manager().ledger();
  EXPECT_EQ(ledger->held_bytes(0), of_second + shm::block_capacity(50000));
  pool.manager().close();
  const WorkerMemory closed = pool.manager().memory().at(0);
  EXPECT_EQ(closed.retired, of_second + shm::block_capacity(50000));
  EXPECT_EQ(closed.mapped + closed.live + closed.idle + closed.touched, 0U);
  third->release();
  EXPECT_EQ(pool.manager().memory().at(0).retired, of_second);
  second->release();
  EXPECT_EQ(pool.manager().memory().at(0).retired, 0U);
  EXPECT_EQ(ledger->held_bytes(0), 0U);
}

TEST_F(IdleMemory, ADeadWorkersFiguresGoWithIt) {
  Pool pool(options(1, std::chrono::milliseconds(5)));
  pool.produce(0, 0, Order{Act::kMake, 0, 300000, 0});
  EXPECT_EQ(pool.next(true)->fault(), "");
  EXPECT_GE(pool.manager().memory().at(0).mapped, 300000U);
  pool.wait_for_births();
  ::kill(pool.manager().worker_pids().at(0), SIGKILL);
  pool.produce(0, 1, Order{Act::kMake, 0, 4096, 0});
  EXPECT_EQ(pool.next(true)->fault(), "");
  EXPECT_EQ(pool.manager().stats().restarts, 1U);
  EXPECT_EQ(pool.manager().memory().at(0).mapped, 4096U);
  EXPECT_LT(pool.manager().memory().at(0).touched, 100000U);
  EXPECT_EQ(pool.manager().memory().at(0).retired, 0U);
}

}  // namespace
}  // namespace stook
