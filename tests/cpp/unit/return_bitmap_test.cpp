#include "shm/return_bitmap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

namespace stook::shm {
namespace {

class ReturnBitmapTest : public ::testing::Test {
 protected:
  std::vector<std::uint32_t> harvest(std::uint32_t block_count = ReturnBitmapWords<>::kBlocks) {
    std::vector<std::uint32_t> blocks;
    harvest_blocks(*bitmap_, block_count, [&](std::uint32_t block) { blocks.push_back(block); });
    std::sort(blocks.begin(), blocks.end());
    return blocks;
  }

  std::unique_ptr<ReturnBitmapWords<>> bitmap_ = std::make_unique<ReturnBitmapWords<>>();
};

TEST_F(ReturnBitmapTest, EveryBlockComesBackOnce) {
  std::vector<std::uint32_t> all(ReturnBitmapWords<>::kBlocks);
  std::iota(all.begin(), all.end(), 0U);
  std::vector<std::uint32_t> shuffled = all;
  std::shuffle(shuffled.begin(), shuffled.end(), std::mt19937(1));
  for (const std::uint32_t block : shuffled) return_block(*bitmap_, block);
  EXPECT_EQ(harvest(), all);
  EXPECT_TRUE(harvest().empty()) << "harvested twice";
}

TEST_F(ReturnBitmapTest, TheLastBlockOfAWordAndOfASummaryAreSeen) {
  for (const std::uint32_t block : {0U, 63U, 64U, 4095U, 4096U, 65535U}) {
    return_block(*bitmap_, block);
    EXPECT_EQ(harvest(), std::vector<std::uint32_t>{block});
  }
}

TEST_F(ReturnBitmapTest, WhatLiesInSummariesAboveTheCountIsNotLookedAt) {
  return_block(*bitmap_, 5);
  return_block(*bitmap_, 5000);
  EXPECT_EQ(harvest(100), std::vector<std::uint32_t>{5});
  EXPECT_EQ(harvest(8000), std::vector<std::uint32_t>{5000});
}

TEST_F(ReturnBitmapTest, AWordAnnouncedOnceIsHarvestedWhole) {
  return_block(*bitmap_, 3);
  return_block(*bitmap_, 9);
  EXPECT_EQ(harvest(), (std::vector<std::uint32_t>{3, 9}));
  return_block(*bitmap_, 9);
  EXPECT_EQ(harvest(), std::vector<std::uint32_t>{9});
}

TEST_F(ReturnBitmapTest, ThreadsReturnWhileTheOwnerHarvests) {
  constexpr std::uint32_t kThreads = 4;
  constexpr std::uint32_t kEach = 4096;
  std::vector<std::uint32_t> seen(kThreads * kEach, 0);
  std::atomic<std::uint32_t> done{0};
  std::vector<std::thread> threads;
  for (std::uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      // Interleaved, so that threads share words.
      for (std::uint32_t i = 0; i < kEach; ++i) return_block(*bitmap_, i * kThreads + thread);
      done.fetch_add(1);
    });
  }
  std::uint32_t total = 0;
  const auto take = [&](std::uint32_t block) {
    ++seen[block];
    ++total;
  };
  while (done.load() < kThreads) harvest_blocks(*bitmap_, kThreads * kEach, take);
  for (auto& thread : threads) thread.join();
  harvest_blocks(*bitmap_, kThreads * kEach, take);
  EXPECT_EQ(total, kThreads * kEach);
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1U), kThreads * kEach);
}

}  // namespace
}  // namespace stook::shm
