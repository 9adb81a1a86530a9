// Many threads submit while the reclaimer is resized: everything is reclaimed once.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "shm/reclaimer.h"
#include "shm/segment.h"
#include "tests/cpp/unit/segment_files.h"

namespace stook::shm {
namespace {

constexpr std::chrono::milliseconds kLong{60'000};
constexpr std::uint64_t kThings = 20'000;
constexpr int kSubmitters = 4;

struct Counted final : Reclaimable {
  std::atomic<std::uint32_t> times{0};
  std::uint64_t written = 0;  // by the submitter, read by whoever reclaims
  std::atomic<std::uint64_t>* sum = nullptr;
  void reclaim() noexcept override {
    times.fetch_add(1, std::memory_order_relaxed);
    sum->fetch_add(written, std::memory_order_relaxed);
  }
  void reclaim_at_exit() noexcept override {}
};

TEST(ReclaimerStress, EverythingIsReclaimedOnceWhileThreadsComeAndGo) {
  const ReclaimerStats before = reclaimer_stats();
  std::atomic<std::uint64_t> sum{0};
  std::vector<std::unique_ptr<Counted[]>> things;
  for (int s = 0; s < kSubmitters; ++s) things.push_back(std::make_unique<Counted[]>(kThings));
  std::atomic<int> running{kSubmitters};
  std::vector<std::thread> threads;
  for (int s = 0; s < kSubmitters; ++s) {
    threads.emplace_back([&, mine = things[static_cast<std::size_t>(s)].get()] {
      for (std::uint64_t i = 0; i < kThings; ++i) {
        mine[i].written = i;
        mine[i].sum = &sum;
        submit_reclaim(&mine[i]);
        if (i % 256 == 0) std::this_thread::yield();  // so that resizing gets its turns
      }
      running.fetch_sub(1);
    });
  }
  for (std::uint32_t round = 0; running.load() > 0; ++round) {
    configure_reclaimer(round % 4, 1 + round * 7 % 60);
  }
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(flush_reclaimer(kLong));
  configure_reclaimer(0, 0);
  for (const auto& mine : things) {
    for (std::uint64_t i = 0; i < kThings; ++i) ASSERT_EQ(mine[i].times.load(), 1U) << i;
  }
  EXPECT_EQ(sum.load(), kSubmitters * (kThings * (kThings - 1) / 2));
  const ReclaimerStats after = reclaimer_stats();
  EXPECT_EQ(after.done_by_threads + after.done_by_callers - before.done_by_threads -
                before.done_by_callers,
            kSubmitters * kThings);
  EXPECT_EQ(after.outstanding, 0U);
}

TEST(ReclaimerStress, ThreadsMakeAttachAndDropSegments) {
  has_private_shared_memory();
  configure_reclaimer(2, 20);
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::string> first(kSubmitters);
  std::vector<std::thread> threads;
  for (int s = 0; s < kSubmitters; ++s) {
    threads.emplace_back([&, s] {
      std::vector<Segment::Pointer> alive;
      for (int i = 0; i < 500; ++i) {
        Segment::Pointer segment = Segment::create(64);
        segment->unlink_on_release();
        const auto stamp = static_cast<std::byte>(s * 50 + i);
        segment->data()[63] = stamp;
        if (Segment::attach(segment->name())->data()[63] != stamp) wrong.fetch_add(1);
        if (i == 0) first[static_cast<std::size_t>(s)] = segment->name();
        alive.push_back(std::move(segment));
        if (alive.size() > 20) alive.erase(alive.begin());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(wrong.load(), 0U);
  EXPECT_EQ(files_of_owner(first[0]), std::set<std::string>{marker_of(first[0])});
  EXPECT_EQ(reclaimer_stats().failures, 0U);
  configure_reclaimer(0, 0);
  leave_segments();
}

}  // namespace
}  // namespace stook::shm
