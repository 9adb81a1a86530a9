#include "workers/worker_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "tests/cpp/unit/child_process.h"
#include "tests/cpp/unit/shared_pages.h"

namespace stook::workers {
namespace {

constexpr std::uint64_t kBytes = std::uint64_t{64} << 20;

class WorkerArenaTest : public ::testing::Test {
 protected:
  WorkerArenaTest()
      : layout_{8, sizeof(ResultSlot), kBytes},
        arena_(shm::create_shared_memory("stook-test", kBytes), layout_) {}

  static BlockRef ref(const WorkerArena::Allocation& allocation) {
    return {allocation.block.offset, allocation.block.capacity, allocation.block.id, 0};
  }
  void hand_over(const WorkerArena::Allocation& allocation) {
    const BlockRef block = ref(allocation);
    arena_.hand_over({&block, 1});
  }
  void parent_returns(shm::BlockId id) {
    shm::return_block(shm::arena_header(arena_.memory()).returned, id);
  }

  shm::ArenaLayout layout_;
  WorkerArena arena_;
};

TEST_F(WorkerArenaTest, AFreedArraysBlockIsTheNext) {
  const auto first = arena_.allocate(10000);
  ASSERT_TRUE(first);
  EXPECT_TRUE(arena_.contains(first->data));
  EXPECT_EQ(arena_.offset_of(first->data), first->block.offset);
  arena_.free(first->data);
  EXPECT_EQ(arena_.allocate(10000)->data, first->data);
}

TEST(WorkerArenaBlocksTest, ArraysLeaveBlocksForResults) {
  // Larger than the fixture's: a page each.
  constexpr std::uint64_t kAll = (shm::kMaxBlocks + 16) * std::uint64_t{shm::kPageBytes};
  const shm::ArenaLayout layout{8, sizeof(ResultSlot), kAll};
  WorkerArena arena(shm::create_shared_memory("stook-test", kAll), layout);
  void* last = nullptr;
  for (std::uint64_t i = 0; i < WorkerArena::kMaxArrayBlocks; ++i) {
    const auto array = arena.allocate_array(1);
    ASSERT_TRUE(array) << i;
    last = array->data;
  }
  EXPECT_FALSE(arena.allocate_array(1)) << "user code may keep what it has for ever";
  EXPECT_TRUE(arena.allocate(1)) << "a result needs one";
  arena.free(last);
  EXPECT_FALSE(arena.allocate_array(1)) << "the result's counts";
}

TEST_F(WorkerArenaTest, AReturnedBlockIsTheNextOnceTheWorkersArrayDiedToo) {
  const auto block = arena_.allocate(10000);
  hand_over(*block);
  arena_.free(block->data);
  EXPECT_NE(arena_.allocate(10000)->data, block->data) << "the parent still reads it";
  parent_returns(block->block.id);
  EXPECT_EQ(arena_.allocate(10000)->data, block->data) << "harvested at the very allocation";
}

TEST_F(WorkerArenaTest, AReturnedBlockIsNotReusedUnderTheWorkersOwnArray) {
  const auto block = arena_.allocate(10000);
  hand_over(*block);
  parent_returns(block->block.id);
  EXPECT_NE(arena_.allocate(10000)->data, block->data);
  arena_.free(block->data);
  EXPECT_EQ(arena_.allocate(10000)->data, block->data);
}

TEST_F(WorkerArenaTest, BlocksReturnedByMistakeStayWhereTheyAre) {
  const auto block = arena_.allocate(10000);
  parent_returns(block->block.id);
  parent_returns(9999);
  parent_returns(shm::kMaxBlocks - 1);
  EXPECT_NE(arena_.allocate(10000)->data, block->data);
  EXPECT_EQ(arena_.live_blocks(), 2U);
}

TEST_F(WorkerArenaTest, FindsWhatTheWorkerHolds) {
  const auto block = arena_.allocate(10000);
  ASSERT_TRUE(arena_.find(block->data));
  EXPECT_EQ(arena_.find(block->data)->id, block->block.id);
  EXPECT_FALSE(arena_.find(block->data + 1));
  int elsewhere = 0;
  EXPECT_FALSE(arena_.find(&elsewhere));
  EXPECT_FALSE(arena_.contains(&elsewhere));
}

TEST_F(WorkerArenaTest, BlocksMadeForAnElementAreTheParentsAlone) {
  const auto block = arena_.allocate(10000);
  const BlockRef made = ref(*block);
  arena_.hand_over({&made, 1});
  arena_.release_own({&made, 1});
  EXPECT_FALSE(arena_.find(block->data));
  EXPECT_EQ(arena_.live_blocks(), 1U);
  parent_returns(made.id);
  EXPECT_EQ(arena_.allocate(10000)->data, block->data);
}

TEST_F(WorkerArenaTest, AnAllocationThatDoesNotFitGetsNothing) {
  EXPECT_FALSE(arena_.allocate(2 * kBytes));
  EXPECT_FALSE(arena_.allocate(arena_.capacity_bytes() + 1));
  EXPECT_EQ(arena_.stats().live_blocks, 0U);
}

TEST_F(WorkerArenaTest, IdleMemoryThatTheParentReturnedGoesBackToTheSystem) {
  std::vector<WorkerArena::Allocation> blocks;
  for (int i = 0; i < 12; ++i) {
    blocks.push_back(*arena_.allocate(std::uint64_t{1} << 20));
    std::memset(blocks.back().data, 0x33, blocks.back().block.capacity);
    hand_over(blocks.back());
    arena_.free(blocks.back().data);
  }
  EXPECT_FALSE(arena_.give_back_idle());
  EXPECT_EQ(arena_.stats().mapped_bytes, std::uint64_t{12} << 20) << "the parent reads them";

  for (int i = 1; i < 12; ++i) parent_returns(blocks[static_cast<std::size_t>(i)].block.id);
  EXPECT_FALSE(arena_.give_back_idle());

  EXPECT_EQ(arena_.stats().live_bytes, std::uint64_t{1} << 20);
  EXPECT_EQ(arena_.stats().idle_bytes, std::uint64_t{1} << 20) << "one block stays at hand";
  EXPECT_EQ(backed_pages(arena_.memory(), blocks[1].block.offset, std::uint64_t{11} << 20), 256U);
  EXPECT_TRUE(all_bytes_are(blocks[0].data, std::uint64_t{1} << 20, 0x33));
}

TEST_F(WorkerArenaTest, TheMoreIsLiveTheMoreIdleMemoryIsKept) {
  std::vector<WorkerArena::Allocation> blocks;
  for (int i = 0; i < 56; ++i) blocks.push_back(*arena_.allocate(std::uint64_t{1} << 20));
  for (int i = 48; i < 56; ++i) arena_.free(blocks[static_cast<std::size_t>(i)].data);
  EXPECT_FALSE(arena_.give_back_idle());
  EXPECT_EQ(arena_.stats().live_bytes, std::uint64_t{48} << 20);
  EXPECT_EQ(arena_.stats().idle_bytes, std::uint64_t{3} << 20) << "a sixteenth";
}

TEST_F(WorkerArenaTest, GivesBackInStepsSoThatAJobNeedNotWait) {
  std::vector<WorkerArena::Allocation> blocks;
  for (int i = 0; i < 40; ++i) blocks.push_back(*arena_.allocate(std::uint64_t{1} << 20));
  for (const auto& block : blocks) arena_.free(block.data);
  std::uint64_t before = arena_.stats().idle_bytes;
  int steps = 0;
  for (bool more = true; more; ++steps) {
    more = arena_.give_back_idle();
    const std::uint64_t now = arena_.stats().idle_bytes;
    EXPECT_LT(now, before);
    EXPECT_LE(before - now, std::uint64_t{16} << 20);
    before = now;
  }
  EXPECT_EQ(steps, 3);
  EXPECT_EQ(before, std::uint64_t{1} << 20);
}

TEST_F(WorkerArenaTest, ThreadsAllocateWhileTheParentReturns) {
  constexpr int kThreads = 3;
  std::atomic<bool> broken{false};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(static_cast<std::uint32_t>(thread));
      const auto fill = static_cast<unsigned char>(thread + 1);
      std::vector<WorkerArena::Allocation> held;
      for (int step = 0; step < 3000; ++step) {
        if (held.size() < 8 && random() % 2 == 0) {
          const auto block = arena_.allocate(1 + random() % 20000);
          if (!block) {
            broken = true;
            return;
          }
          std::memset(block->data, fill, block->block.capacity);
          held.push_back(*block);
        } else if (!held.empty()) {
          const WorkerArena::Allocation block = held.back();
          held.pop_back();
          if (!all_bytes_are(block.data, block.block.capacity, fill)) broken = true;
          if (random() % 2 == 0) {
            hand_over(block);
            arena_.free(block.data);
            parent_returns(block.block.id);
          } else {
            arena_.free(block.data);
          }
        }
      }
      for (const auto& block : held) arena_.free(block.data);
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_FALSE(broken);
  arena_.allocate(1);  // harvests the last ones
  EXPECT_EQ(arena_.live_blocks(), 1U);
}

TEST_F(WorkerArenaTest, WhatAForkedChildWritesStaysItsOwn) {
  const auto block = arena_.allocate(10000);
  std::memset(block->data, 0x11, 10000);
  EXPECT_EQ(exit_code_of_child([&] {
              if (!all_bytes_are(block->data, 10000, 0x11)) return 1;  // it sees what was there
              std::memset(block->data, 0x22, 10000);
              return all_bytes_are(block->data, 10000, 0x22) ? 0 : 2;
            }),
            0);
  EXPECT_TRUE(all_bytes_are(block->data, 10000, 0x11)) << "the child wrote into the worker's array";
}

TEST_F(WorkerArenaTest, AForkedChildNeitherAllocatesNorFrees) {
  const auto block = arena_.allocate(10000);
  EXPECT_EQ(exit_code_of_child([&] {
              arena_.free(block->data);
              if (arena_.find(block->data)) return 1;
              return arena_.allocate(1) ? 2 : 0;
            }),
            0);
  EXPECT_TRUE(arena_.find(block->data));
}

TEST_F(WorkerArenaTest, AChildForkedWhileAThreadAllocatesDoesNotHang) {
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop.load()) {
      if (const auto block = arena_.allocate(5000)) arena_.free(block->data);
    }
  });
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(exit_code_of_child([&] { return arena_.allocate(5000) ? 1 : 0; }), 0);
  }
  stop = true;
  busy.join();
}

}  // namespace
}  // namespace stook::workers
