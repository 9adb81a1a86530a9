#include "shm/doorbell.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>

#include "shm/eventfd.h"

namespace stook::shm {
namespace {

constexpr std::uint64_t kForJob = 1;
constexpr std::uint64_t kForMemory = 2;

bool anything(std::uint64_t) { return true; }

TEST(Doorbell, NobodyIsRungWhoDoesNotSleep) {
  DoorbellWord<> word{};
  EXPECT_FALSE(take_sleeper(word, anything));
  announce_sleep(word, kForJob);
  wake_up(word);
  EXPECT_FALSE(take_sleeper(word, anything));
}

TEST(Doorbell, OfSeveralWakersOneRings) {
  DoorbellWord<> word{};
  announce_sleep(word, kForJob);
  EXPECT_TRUE(take_sleeper(word, anything));
  EXPECT_FALSE(take_sleeper(word, anything));
}

TEST(Doorbell, OnlyTheReasonThatIsMetEndsTheSleep) {
  DoorbellWord<> word{};
  announce_sleep(word, kForMemory);
  EXPECT_FALSE(take_sleeper(word, [](std::uint64_t reason) { return reason == kForJob; }));
  EXPECT_TRUE(take_sleeper(word, [](std::uint64_t reason) { return reason == kForMemory; }));
}

TEST(Doorbell, TheSharedFlagIsTakenOnce) {
  DoorbellWord<> word{};
  std::atomic<std::uint64_t> wanted{0};
  EXPECT_FALSE(take_wanted(wanted));
  announce_sleep(word, kForJob, wanted);
  EXPECT_TRUE(take_wanted(wanted));
  EXPECT_FALSE(take_wanted(wanted));
  EXPECT_TRUE(take_sleeper_after_fence(word, anything));
}

TEST(Doorbell, ARungEventfdIsReadableUntilItIsRead) {
  const FileDescriptor bell = create_eventfd(EventWait::kNonBlocking);
  pollfd entry{bell.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 0);
  std::uint64_t rings = 0;
  EXPECT_EQ(::read(bell.get(), &rings, sizeof rings), -1) << "non-blocking";
  ring_eventfd(bell.get());
  ring_eventfd(bell.get());
  EXPECT_EQ(::poll(&entry, 1, 0), 1);
  ASSERT_EQ(::read(bell.get(), &rings, sizeof rings), 8);
  EXPECT_EQ(rings, 2U);
  EXPECT_EQ(::poll(&entry, 1, 0), 0);
}

TEST(Doorbell, AFullCounterDoesNotHoldUpTheWaker) {
  const FileDescriptor bell = create_eventfd(EventWait::kNonBlocking);
  const std::uint64_t full = ~std::uint64_t{0} - 1;
  ASSERT_EQ(::write(bell.get(), &full, sizeof full), 8);
  ring_eventfd(bell.get());  // returns
  pollfd entry{bell.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 0), 1);
}

// A lost ring would leave this test asleep for ever.
TEST(Doorbell, ThousandsOfSleepsEachEnd) {
  constexpr std::uint64_t kRounds = 5000;
  DoorbellWord<> word{};
  const FileDescriptor bell = create_eventfd(EventWait::kBlocking);
  std::atomic<std::uint64_t> published{0};
  std::atomic<std::uint64_t> seen{0};
  std::thread waker([&] {
    for (std::uint64_t round = 1; round <= kRounds; ++round) {
      published.store(round, std::memory_order_relaxed);
      if (take_sleeper(word, anything)) ring_eventfd(bell.get());
      while (seen.load(std::memory_order_relaxed) < round) std::this_thread::yield();
    }
  });
  for (std::uint64_t round = 1; round <= kRounds; ++round) {
    while (published.load(std::memory_order_relaxed) < round) {
      announce_sleep(word, kForJob);
      if (published.load(std::memory_order_relaxed) < round) {
        std::uint64_t rings = 0;
        ASSERT_EQ(::read(bell.get(), &rings, sizeof rings), 8);
      }
      wake_up(word);
    }
    seen.store(round, std::memory_order_relaxed);
  }
  waker.join();
}

}  // namespace
}  // namespace stook::shm
