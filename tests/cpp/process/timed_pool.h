// Pools whose items may stick or die, and a clock that goes on when a test says so.
#pragma once

#include <signal.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "tests/cpp/process/pool.h"
#include "workers/process.h"

namespace stook {

using workers::Loss;
using namespace std::chrono_literals;

// Of eight items each: which die, which stick, which are run although they were lost.
inline Order items(std::uint64_t die, std::uint64_t stick, std::uint64_t again = 0) {
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

}  // namespace stook
