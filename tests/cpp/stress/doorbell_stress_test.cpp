// A ring of one slot with a doorbell each way: both sides go to sleep all the time. A lost wake-up
// would leave both asleep; the watchdog turns that into a failure.
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <thread>
#include <vector>

#include "shm/doorbell.h"
#include "shm/eventfd.h"
#include "shm/ring.h"
#include "tests/cpp/stress/shared_page.h"

namespace stook {
namespace {

constexpr std::uint64_t kItems = 30'000;
constexpr int kWatchdogMilliseconds = 60'000;

struct Side {
  Side() : bell(shm::create_eventfd(shm::EventWait::kNonBlocking)) {}
  shm::FileDescriptor bell;
};

// Sleeps on `bell` until `look` finds something; false when the watchdog barks.
template <class Look>
bool await(shm::DoorbellWord<>& word, int bell, const Look& look) {
  for (;;) {
    if (look()) return true;
    shm::announce_sleep(word, 1);
    const bool found = look();
    if (!found) {
      ::pollfd polled{bell, POLLIN, 0};
      int ready;
      do {
        ready = ::poll(&polled, 1, kWatchdogMilliseconds);
      } while (ready < 0 && errno == EINTR);
      if (ready == 0) return false;
      std::uint64_t rings;
      (void)!::read(bell, &rings, sizeof rings);
    }
    shm::wake_up(word);
    if (found) return true;
  }
}

void wake(shm::DoorbellWord<>& word, int bell) {
  if (shm::take_sleeper(word, [](std::uint64_t reason) { return reason == 1; })) {
    shm::ring_eventfd(bell);
  }
}

TEST(DoorbellStress, NoWakeUpIsLostInEitherDirection) {
  struct Shared {
    shm::RingPositions<> positions{};
    Checked slots[1];
    shm::DoorbellWord<> not_full{};
    shm::DoorbellWord<> not_empty{};
  };
  SharedPage<Shared> shared;
  const Side producer_side;
  const Side consumer_side;
  std::atomic<std::uint64_t> lost{0};

  std::thread producer([&] {
    shm::RingWriter<Checked> writer(shared->positions, shared->slots, 1);
    for (std::uint64_t item = 0; item < kItems; ++item) {
      Checked* slot = nullptr;
      if (!await(shared->not_full, producer_side.bell.get(),
                 [&] { return (slot = writer.prepare()) != nullptr; })) {
        ++lost;
        return;
      }
      slot->write(item);
      writer.publish();
      wake(shared->not_empty, consumer_side.bell.get());
    }
  });

  shm::RingReader<Checked> reader(shared->positions, shared->slots, 1);
  std::uint64_t wrong = 0;
  for (std::uint64_t item = 0; item < kItems; ++item) {
    const Checked* slot = nullptr;
    if (!await(shared->not_empty, consumer_side.bell.get(),
               [&] { return (slot = reader.front()) != nullptr; })) {
      ++lost;
      break;
    }
    wrong += !slot->holds(item);
    reader.pop();
    wake(shared->not_full, producer_side.bell.get());
  }
  producer.join();
  EXPECT_EQ(lost, 0u) << "a sleeper was not woken for a minute";
  EXPECT_EQ(wrong, 0u);
}

// Workers behind one flag, as the manager rings them: all items are taken, whoever sleeps.
TEST(DoorbellStress, NoWakeUpIsLostInACrowd) {
  constexpr std::uint32_t kWorkers = 3;
  constexpr std::uint64_t kPublished = 30'000;
  struct Shared {
    std::atomic<std::uint64_t> items;
    std::atomic<std::uint64_t> taken;
    std::atomic<std::uint64_t> stop;
    std::atomic<std::uint64_t> wanted;
    shm::DoorbellWord<> workers[kWorkers] = {};
    shm::DoorbellWord<> parent{};
  };
  SharedPage<Shared> shared;
  const Side sides[kWorkers];
  const Side parent_side;
  std::atomic<std::uint64_t> lost{0};

  const auto take_item = [&] {
    std::uint64_t count = shared->items.load(std::memory_order_relaxed);
    while (count != 0) {
      if (shared->items.compare_exchange_weak(count, count - 1, std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  };
  const auto ring_sleepers = [&](std::uint64_t most) {
    shm::doorbell_fence<shm::StdAtomics>();
    if (!shm::take_wanted(shared->wanted)) return;
    for (std::uint32_t i = 0; i < kWorkers; ++i) {
      shm::DoorbellWord<>& word = shared->workers[i];
      if (most == 0) {
        if (word.reason.load(std::memory_order_relaxed) == shm::kAwake) continue;
        shared->wanted.exchange(1, std::memory_order_relaxed);
        return;
      }
      if (shm::take_sleeper_after_fence(word, [](std::uint64_t) { return true; })) {
        shm::ring_eventfd(sides[i].bell.get());
        --most;
      }
    }
  };

  std::vector<std::thread> workers;
  for (std::uint32_t self = 0; self < kWorkers; ++self) {
    workers.emplace_back([&, self] {
      shm::DoorbellWord<>& word = shared->workers[self];
      const int bell = sides[self].bell.get();
      for (;;) {
        bool taken = take_item();
        while (!taken) {
          shm::announce_sleep(word, 1, shared->wanted);
          taken = take_item();
          if (!taken && shared->stop.load(std::memory_order_relaxed) != 0) return;
          if (!taken) {
            ::pollfd polled{bell, POLLIN, 0};
            if (::poll(&polled, 1, kWatchdogMilliseconds) == 0) {
              ++lost;
              return;
            }
            std::uint64_t rings;
            (void)!::read(bell, &rings, sizeof rings);
            taken = take_item();
          }
          shm::wake_up(word);
        }
        shared->taken.fetch_add(1, std::memory_order_release);
        wake(shared->parent, parent_side.bell.get());
      }
    });
  }

  // The parent keeps at most two items in flight, so that workers fall asleep all the time.
  for (std::uint64_t item = 0; item < kPublished && lost == 0; ++item) {
    shared->items.fetch_add(1, std::memory_order_relaxed);
    ring_sleepers(1);
    if (!await(shared->parent, parent_side.bell.get(),
               [&] { return shared->taken.load(std::memory_order_acquire) + 1 >= item; })) {
      ++lost;
    }
  }
  if (!await(shared->parent, parent_side.bell.get(),
             [&] { return shared->taken.load(std::memory_order_acquire) == kPublished; })) {
    ++lost;
  }
  shared->stop.store(1, std::memory_order_relaxed);
  ring_sleepers(kWorkers);
  for (const Side& side : sides) shm::ring_eventfd(side.bell.get());
  for (auto& worker : workers) worker.join();
  EXPECT_EQ(lost, 0u) << "a sleeper was not woken for a minute";
  EXPECT_EQ(shared->taken.load(), kPublished);
  EXPECT_EQ(shared->items.load(), 0u);
}

}  // namespace
}  // namespace stook
