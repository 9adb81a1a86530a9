#include "shm/block_allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <vector>

#include "tests/cpp/unit/shared_pages.h"

namespace stook::shm {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

struct TestArena {
  explicit TestArena(std::uint64_t bytes, std::uint64_t begin_at = kPageBytes,
                     std::uint64_t (*bytes_left)() = nullptr)
      : begin(begin_at),
        fd(create_shared_memory("stook-test", begin_at + bytes)),
        memory(fd.get(), begin_at + bytes, Access::kReadWrite),
        allocator(memory, begin_at, begin_at + bytes, bytes_left) {}

  std::byte* data(const Block& block) const { return memory.data() + block.offset; }

  std::uint64_t begin;
  FileDescriptor fd;
  Mapping memory;
  BlockAllocator allocator;
};

// ------------------------------------------------------------------ sizes

TEST(BlockCapacity, IsWholePagesAndWastesAtMostAnEighth) {
  std::uint64_t before = 0;
  for (std::uint64_t bytes = 1; bytes < 64 * kMiB; bytes += 1 + bytes / 97) {
    const std::uint64_t capacity = block_capacity(bytes);
    const std::uint64_t pages = round_up(bytes, kPageBytes);
    ASSERT_GE(capacity, bytes);
    ASSERT_EQ(capacity % kPageBytes, 0U) << bytes;
    ASSERT_LE(capacity - pages, pages / 8) << bytes;
    ASSERT_GE(capacity, before) << "a larger request got less: " << bytes;
    before = capacity;
  }
}

TEST(BlockCapacity, UpToEightPagesIsExact) {
  EXPECT_EQ(block_capacity(0), kPageBytes) << "an empty array needs an address, too";
  for (std::uint64_t pages = 1; pages <= 8; ++pages) {
    EXPECT_EQ(block_capacity(pages * kPageBytes), pages * kPageBytes);
    EXPECT_EQ(block_capacity(pages * kPageBytes - 1), pages * kPageBytes);
  }
  EXPECT_EQ(block_capacity(8 * kPageBytes + 1), 9 * kPageBytes);
}

TEST(BlockCapacity, OfACapacityIsItself) {
  for (std::uint64_t bytes = 1; bytes < 512 * kMiB; bytes += 1 + bytes / 31) {
    const std::uint64_t capacity = block_capacity(bytes);
    EXPECT_EQ(block_capacity(capacity), capacity);
  }
}

// ------------------------------------------------------------------ reuse

TEST(BlockAllocator, BlocksLieInTheirRangeAndApart) {
  TestArena arena(kMiB, 3 * kPageBytes);
  std::map<std::uint64_t, std::uint64_t> taken;
  while (const auto block = arena.allocator.allocate(3000)) {
    EXPECT_GE(block->offset, 3 * kPageBytes);
    EXPECT_LE(block->offset + block->capacity, 3 * kPageBytes + kMiB);
    EXPECT_TRUE(taken.emplace(block->offset, block->capacity).second) << "handed out twice";
  }
  EXPECT_EQ(taken.size(), kMiB / kPageBytes);
}

TEST(BlockAllocator, TheBlockFreedLastIsTheNext) {
  TestArena arena(kMiB);
  const Block first = *arena.allocator.allocate(5000);
  const Block second = *arena.allocator.allocate(5000);
  const Block third = *arena.allocator.allocate(5000);
  for (const BlockId id : {second.id, first.id, third.id}) arena.allocator.owner_releases(id);
  EXPECT_EQ(arena.allocator.allocate(5000)->id, third.id);
  EXPECT_EQ(arena.allocator.allocate(5000)->id, first.id);
  EXPECT_EQ(arena.allocator.allocate(5000)->id, second.id);
}

TEST(BlockAllocator, AWarmBlockThatIsSlightlyLargerServesAMuchLargerOneDoesNot) {
  TestArena arena(8 * kMiB);
  const Block warm = *arena.allocator.allocate(100 * kPageBytes);
  const Block huge = *arena.allocator.allocate(400 * kPageBytes);
  arena.allocator.owner_releases(warm.id);
  arena.allocator.owner_releases(huge.id);
  const Block taken = *arena.allocator.allocate(90 * kPageBytes);
  EXPECT_EQ(taken.id, warm.id);
  EXPECT_EQ(taken.capacity, warm.capacity);
  EXPECT_FALSE(taken.zeroed);
  EXPECT_NE(arena.allocator.allocate(90 * kPageBytes)->id, huge.id);
}

TEST(BlockAllocator, ACarvedBlockReadsAsZeroAndARecycledOneDoesNotClaimTo) {
  TestArena arena(kMiB);
  const Block fresh = *arena.allocator.allocate(kPageBytes);
  EXPECT_TRUE(fresh.zeroed);
  EXPECT_TRUE(all_bytes_are(arena.data(fresh), fresh.capacity, 0));
  fill_bytes(arena.data(fresh), fresh.capacity, 0xAB);
  arena.allocator.owner_releases(fresh.id);
  EXPECT_FALSE(arena.allocator.allocate(kPageBytes)->zeroed);
}

// ------------------------------------------------------------------ who holds a block

TEST(BlockAllocator, AHandedBlockIsFreeOnlyWhenBothSidesHaveLetGo) {
  for (const bool owner_first : {true, false}) {
    TestArena arena(kMiB);
    const Block block = *arena.allocator.allocate(kPageBytes);
    arena.allocator.hand_over(block.id);
    if (owner_first) {
      arena.allocator.owner_releases(block.id);
    } else {
      EXPECT_TRUE(arena.allocator.other_side_returns(block.id));
    }
    EXPECT_EQ(arena.allocator.stats().live_blocks, 1U);
    EXPECT_NE(arena.allocator.allocate(kPageBytes)->id, block.id) << "given out while held";
    if (owner_first) {
      EXPECT_TRUE(arena.allocator.other_side_returns(block.id));
    } else {
      arena.allocator.owner_releases(block.id);
    }
    EXPECT_EQ(arena.allocator.allocate(kPageBytes)->id, block.id);
  }
}

TEST(BlockAllocator, ABlockThatWasNotHandedOverCannotBeReturned) {
  TestArena arena(kMiB);
  const Block block = *arena.allocator.allocate(kPageBytes);
  EXPECT_FALSE(arena.allocator.other_side_returns(block.id));
  EXPECT_FALSE(arena.allocator.other_side_returns(block.id + 1)) << "an id never given out";
  EXPECT_FALSE(arena.allocator.other_side_returns(kMaxBlocks - 1));
  EXPECT_EQ(arena.allocator.stats().live_blocks, 1U);
  arena.allocator.hand_over(block.id);
  EXPECT_TRUE(arena.allocator.other_side_returns(block.id));
  EXPECT_FALSE(arena.allocator.other_side_returns(block.id)) << "returned twice";
  EXPECT_EQ(arena.allocator.stats().live_blocks, 1U) << "the owner still holds it";
}

TEST(BlockAllocator, ASecondReleaseByTheOwnerChangesNothing) {
  TestArena arena(kMiB);
  const Block block = *arena.allocator.allocate(kPageBytes);
  arena.allocator.owner_releases(block.id);
  arena.allocator.owner_releases(block.id);
  EXPECT_EQ(arena.allocator.stats().live_blocks, 0U);
  EXPECT_EQ(arena.allocator.stats().idle_bytes, kPageBytes);
  const Block one = *arena.allocator.allocate(kPageBytes);
  const Block other = *arena.allocator.allocate(kPageBytes);
  EXPECT_NE(one.id, other.id) << "the same block for two arrays";
}

TEST(BlockAllocator, FindsTheStartOfABlockThatTheOwnerHolds) {
  TestArena arena(kMiB);
  const Block block = *arena.allocator.allocate(3 * kPageBytes);
  ASSERT_TRUE(arena.allocator.find(block.offset));
  EXPECT_EQ(arena.allocator.find(block.offset)->id, block.id);
  EXPECT_EQ(arena.allocator.find(block.offset)->capacity, block.capacity);
  for (const std::uint64_t offset :
       {block.offset + 1, block.offset + kPageBytes, block.offset + block.capacity,
        std::uint64_t{0}, arena.memory.size(), arena.memory.size() + kPageBytes,
        ~std::uint64_t{0} - kPageBytes + 1}) {
    EXPECT_FALSE(arena.allocator.find(offset)) << offset;
  }
  arena.allocator.hand_over(block.id);
  EXPECT_TRUE(arena.allocator.find(block.offset));
  arena.allocator.owner_releases(block.id);
  EXPECT_FALSE(arena.allocator.find(block.offset)) << "only the other side holds it";
}

// ------------------------------------------------------------------ no room

TEST(BlockAllocator, MoreThanTheArenaGetsNothing) {
  TestArena arena(kMiB);
  for (const std::uint64_t bytes : {kMiB + 1, 2 * kMiB, std::uint64_t{1} << 62,
                                    ~std::uint64_t{0} - kPageBytes, ~std::uint64_t{0}}) {
    EXPECT_FALSE(arena.allocator.allocate(bytes)) << bytes;
  }
  EXPECT_EQ(arena.allocator.stats().live_bytes, 0U);
  EXPECT_TRUE(arena.allocator.allocate(kMiB)) << "the whole of it";
}

TEST(BlockAllocator, AFullArenaGivesNothingUntilABlockIsFree) {
  TestArena arena(16 * kPageBytes);
  std::vector<Block> blocks;
  while (const auto block = arena.allocator.allocate(kPageBytes)) blocks.push_back(*block);
  EXPECT_EQ(blocks.size(), 16U);
  EXPECT_FALSE(arena.allocator.allocate(1));
  arena.allocator.owner_releases(blocks[7].id);
  EXPECT_EQ(arena.allocator.allocate(1)->id, blocks[7].id);
  EXPECT_FALSE(arena.allocator.allocate(1));
}

TEST(BlockAllocator, IdleBlocksMakeRoomForAnotherSize) {
  TestArena arena(16 * kPageBytes);
  std::vector<Block> blocks;
  while (const auto block = arena.allocator.allocate(kPageBytes)) {
    fill_bytes(arena.data(*block), block->capacity, 0xAB);
    blocks.push_back(*block);
  }
  std::shuffle(blocks.begin(), blocks.end(), std::mt19937(3));
  for (const Block& block : blocks) arena.allocator.owner_releases(block.id);

  const auto whole = arena.allocator.allocate(16 * kPageBytes);

  ASSERT_TRUE(whole) << "all is free, but cut into pages";
  EXPECT_EQ(whole->offset, arena.begin);
  EXPECT_TRUE(whole->zeroed);
  EXPECT_TRUE(all_bytes_are(arena.data(*whole), whole->capacity, 0));
}

TEST(BlockAllocator, IdleBlocksDoNotMakeRoomWhereLiveOnesStandBetween) {
  TestArena arena(16 * kPageBytes);
  std::vector<Block> blocks;
  while (const auto block = arena.allocator.allocate(kPageBytes)) blocks.push_back(*block);
  for (std::size_t i = 0; i < blocks.size(); i += 2) arena.allocator.owner_releases(blocks[i].id);
  EXPECT_FALSE(arena.allocator.allocate(2 * kPageBytes));
  EXPECT_TRUE(arena.allocator.allocate(kPageBytes)) << "what was given up is still free";
  EXPECT_EQ(arena.allocator.stats().live_blocks, 9U);
}

TEST(BlockAllocator, AllIdsCanBeOutAndNotOneMore) {
  TestArena arena((kMaxBlocks + 64) * kPageBytes);
  std::vector<BlockId> ids;
  while (const auto block = arena.allocator.allocate(1)) ids.push_back(block->id);
  ASSERT_EQ(ids.size(), kMaxBlocks);
  std::sort(ids.begin(), ids.end());
  EXPECT_EQ(ids.front(), 0U);
  EXPECT_EQ(ids.back(), kMaxBlocks - 1);
  EXPECT_EQ(std::adjacent_find(ids.begin(), ids.end()), ids.end());
  EXPECT_EQ(arena.allocator.block_count(), kMaxBlocks);

  // An idle block of another size gives its id to a request that it cannot serve itself.
  arena.allocator.owner_releases(ids[1234]);
  const auto large = arena.allocator.allocate(8 * kPageBytes);
  ASSERT_TRUE(large);
  EXPECT_EQ(large->id, ids[1234]);
  EXPECT_FALSE(arena.allocator.allocate(1));
}

// ------------------------------------------------------------------ the machine's memory

std::uint64_t machine_has_left = 0;
std::uint64_t looks = 0;
std::uint64_t look_at_machine() {
  ++looks;
  return machine_has_left;
}

TEST(BlockAllocator, DoesNotGrowIntoWhatTheMachineHasNotGot) {
  machine_has_left = 49 * kMiB;
  TestArena arena(256 * kMiB, kPageBytes, &look_at_machine);
  EXPECT_FALSE(arena.allocator.allocate(2 * kMiB)) << "48 MiB are left to others";
  const auto block = arena.allocator.allocate(kMiB / 2);
  ASSERT_TRUE(block);
  machine_has_left = 0;
  EXPECT_FALSE(arena.allocator.allocate(kMiB));
  arena.allocator.owner_releases(block->id);
  looks = 0;
  EXPECT_TRUE(arena.allocator.allocate(kMiB / 2)) << "a recycled block costs nothing";
  EXPECT_EQ(looks, 0U);
}

TEST(BlockAllocator, LooksAtTheMachineOnceInAWhile) {
  machine_has_left = 4096 * kMiB;
  looks = 0;
  TestArena arena(64 * kMiB, kPageBytes, &look_at_machine);
  for (int i = 0; i < 48; ++i) ASSERT_TRUE(arena.allocator.allocate(kMiB));
  EXPECT_GE(looks, 1U);
  EXPECT_LE(looks, 2U);
}

TEST(BlockAllocator, GivesIdleBlocksBackWhereTheMachineHasNoMore) {
  machine_has_left = 4096 * kMiB;
  TestArena arena(256 * kMiB, kPageBytes, &look_at_machine);
  const auto small = arena.allocator.allocate(16 * kMiB);
  ASSERT_TRUE(small);
  fill_bytes(arena.data(*small), small->capacity, 0xAB);
  arena.allocator.owner_releases(small->id);
  machine_has_left = 0;
  while (arena.allocator.allocate(2 * kMiB)) {  // uses up what it was promised
  }
  EXPECT_LE(backed_bytes(arena.fd.get()), arena.allocator.stats().mapped_bytes);
  EXPECT_EQ(arena.allocator.stats().idle_bytes, 0U) << "idle memory was kept in need";
}

// ------------------------------------------------------------------ idle memory goes back

TEST(BlockAllocator, IdleMemoryBeyondTheRecentNeedGoesBack) {
  TestArena arena(256 * kMiB);
  std::vector<Block> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(*arena.allocator.allocate(kMiB));
    fill_bytes(arena.data(blocks.back()), kMiB, 0xAB);
  }
  for (const Block& block : blocks) arena.allocator.owner_releases(block.id);
  EXPECT_EQ(backed_bytes(arena.fd.get()), 64 * kMiB) << "what was just needed stays at hand";

  // A long time in which little is needed.
  for (int i = 0; i < 3 * 4096; ++i) {
    arena.allocator.owner_releases(arena.allocator.allocate(kPageBytes)->id);
  }

  const BlockStats stats = arena.allocator.stats();
  EXPECT_LE(backed_bytes(arena.fd.get()), 33 * kMiB);
  EXPECT_EQ(stats.idle_bytes, stats.mapped_bytes);
  EXPECT_EQ(backed_bytes(arena.fd.get()), stats.mapped_bytes) << "the books are wrong";
  // Blocks released first were idle longest.
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(backed_pages(arena.memory, blocks[static_cast<std::size_t>(i)].offset, kMiB), 0U);
  }
  EXPECT_EQ(backed_pages(arena.memory, blocks[63].offset, kMiB), kMiB / kPageBytes);

  // Carved again, it reads as zero again.
  std::vector<Block> again;
  for (int i = 0; i < 64; ++i) again.push_back(*arena.allocator.allocate(kMiB));
  int carved = 0;
  for (const Block& block : again) {
    if (!block.zeroed) continue;
    ++carved;
    EXPECT_TRUE(all_bytes_are(arena.data(block), block.capacity, 0));
  }
  EXPECT_GE(carved, 31);
}

// Blocks of different sizes, freed in another order than they were allocated in; all written to.
struct FreedBlocks {
  explicit FreedBlocks(TestArena& arena) {
    for (const std::uint64_t pages : {40U, 3U, 40U, 7U, 100U, 3U, 40U, 7U}) {
      blocks.push_back(*arena.allocator.allocate(pages * kPageBytes));
      fill_bytes(arena.data(blocks.back()), blocks.back().capacity, 0xAB);
    }
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(7));
    for (const Block& block : blocks) {
      arena.allocator.owner_releases(block.id);
      bytes += block.capacity;
    }
  }
  // How many, from the coldest on, have no pages; -1 if a warmer one has none before a colder one.
  int given_back(const TestArena& arena) const {
    int count = 0;
    bool kept = false;
    for (const Block& block : blocks) {
      const std::uint64_t pages = backed_pages(arena.memory, block.offset, block.capacity);
      if (pages != 0 && pages != block.capacity / kPageBytes) return -1;
      if (pages == 0 && kept) return -1;
      kept = pages != 0;
      count += kept ? 0 : 1;
    }
    return count;
  }

  std::vector<Block> blocks;  // coldest first
  std::uint64_t bytes = 0;
};

TEST(BlockAllocatorTrim, GivesBackWhatWasIdleLongestAndNoMoreThanItMust) {
  for (int wanted = 0; wanted <= 8; ++wanted) {
    TestArena arena(4 * kMiB);
    const FreedBlocks freed(arena);
    std::uint64_t keep = freed.bytes;
    for (int i = 0; i < wanted; ++i) keep -= freed.blocks[static_cast<std::size_t>(i)].capacity;
    EXPECT_FALSE(arena.allocator.trim_idle_to(keep, freed.bytes));
    EXPECT_EQ(freed.given_back(arena), wanted);
    EXPECT_EQ(arena.allocator.stats().idle_bytes, keep);
    EXPECT_EQ(arena.allocator.stats().mapped_bytes, keep);
    EXPECT_EQ(backed_bytes(arena.fd.get()), keep);
    EXPECT_FALSE(arena.allocator.trim_idle_to(keep, freed.bytes)) << "there was nothing to do";
    EXPECT_EQ(backed_bytes(arena.fd.get()), keep);
  }
}

TEST(BlockAllocatorTrim, GoesBelowALimitThatLiesWithinABlock) {
  TestArena arena(4 * kMiB);
  const FreedBlocks freed(arena);
  EXPECT_FALSE(arena.allocator.trim_idle_to(freed.bytes - 1, freed.bytes));
  EXPECT_EQ(freed.given_back(arena), 1);
}

TEST(BlockAllocatorTrim, StopsAfterAsMuchAsItMayAndSaysSo) {
  TestArena arena(4 * kMiB);
  const FreedBlocks freed(arena);
  for (int calls = 1; calls < 8; ++calls) {
    EXPECT_TRUE(arena.allocator.trim_idle_to(0, 1));
    EXPECT_EQ(freed.given_back(arena), calls) << "a block per call";
  }
  EXPECT_FALSE(arena.allocator.trim_idle_to(0, 1));
  EXPECT_EQ(arena.allocator.stats().mapped_bytes, 0U);
  EXPECT_EQ(backed_bytes(arena.fd.get()), 0U);
}

TEST(BlockAllocatorTrim, LeavesLiveBlocksAlone) {
  TestArena arena(4 * kMiB);
  const Block owned = *arena.allocator.allocate(20 * kPageBytes);
  const FreedBlocks freed(arena);
  const Block handed = *arena.allocator.allocate(90 * kPageBytes);  // a warm one
  fill_bytes(arena.data(owned), owned.capacity, 0x11);
  fill_bytes(arena.data(handed), handed.capacity, 0x22);
  arena.allocator.hand_over(handed.id);
  arena.allocator.owner_releases(handed.id);

  arena.allocator.trim_idle_to(0, freed.bytes);

  EXPECT_EQ(backed_bytes(arena.fd.get()), owned.capacity + handed.capacity);
  EXPECT_TRUE(all_bytes_are(arena.data(owned), owned.capacity, 0x11));
  EXPECT_TRUE(all_bytes_are(arena.data(handed), handed.capacity, 0x22));
  EXPECT_TRUE(arena.allocator.find(owned.offset));
  EXPECT_TRUE(arena.allocator.other_side_returns(handed.id));
}

TEST(BlockAllocatorTrim, WhatIsKeptIsTheNextAndWhatWasGivenBackReadsAsZero) {
  TestArena arena(4 * kMiB);
  std::vector<Block> blocks;
  for (int i = 0; i < 4; ++i) {
    blocks.push_back(*arena.allocator.allocate(10 * kPageBytes));
    fill_bytes(arena.data(blocks.back()), blocks.back().capacity, 0xAB);
  }
  for (const Block& block : blocks) arena.allocator.owner_releases(block.id);
  arena.allocator.trim_idle_to(2 * blocks[0].capacity, kMiB);
  EXPECT_EQ(arena.allocator.allocate(10 * kPageBytes)->id, blocks[3].id);
  const Block warm = *arena.allocator.allocate(10 * kPageBytes);
  EXPECT_EQ(warm.id, blocks[2].id);
  EXPECT_FALSE(warm.zeroed);
  for (int i = 0; i < 2; ++i) {
    const Block fresh = *arena.allocator.allocate(10 * kPageBytes);
    EXPECT_TRUE(fresh.zeroed);
    EXPECT_TRUE(all_bytes_are(arena.data(fresh), fresh.capacity, 0));
    EXPECT_LT(fresh.offset, blocks[2].offset) << "the ranges given back serve again";
  }
}

TEST(BlockAllocatorTrim, ThousandsOfBlocksAtOnce) {
  TestArena arena(64 * kMiB);
  std::vector<BlockId> ids;
  for (int i = 0; i < 10000; ++i) ids.push_back(arena.allocator.allocate(1)->id);
  for (const BlockId id : ids) {
    if (id % 100 != 0) arena.allocator.owner_releases(id);
  }
  EXPECT_FALSE(arena.allocator.trim_idle_to(kMiB, 64 * kMiB));
  EXPECT_EQ(backed_bytes(arena.fd.get()), kMiB + 100 * kPageBytes);
  EXPECT_EQ(arena.allocator.stats().live_blocks, 100U);
}

// ------------------------------------------------------------------ against a model

TEST(BlockAllocator, BehavesAsItsModelUnderRandomUse) {
  for (std::uint32_t seed = 1; seed <= 5; ++seed) {
    std::mt19937 random(seed);
    constexpr std::uint64_t kPages = 512;
    TestArena arena(kPages * kPageBytes);
    struct Held {
      Block block;
      bool owner = true;
      bool other = false;
      unsigned char fill = 0;
    };
    std::vector<Held> held;
    std::map<std::uint64_t, std::uint64_t> taken;  // offset -> end
    std::uint64_t live_bytes = 0;
    std::uint64_t refusals = 0;

    const auto drop_if_free = [&](std::size_t i) {
      if (held[i].owner || held[i].other) return;
      const Block& block = held[i].block;
      ASSERT_TRUE(all_bytes_are(arena.data(block), block.capacity, held[i].fill))
          << "another block's owner wrote into this one";
      taken.erase(block.offset);
      live_bytes -= block.capacity;
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    };

    for (int step = 0; step < 20000; ++step) {
      const auto action = random() % 10;
      if (action < 5 || held.empty()) {
        // Mostly small, now and then a large part of the arena.
        const std::uint64_t pages = random() % 16 == 0 ? 1 + random() % 200 : 1 + random() % 12;
        const auto block = arena.allocator.allocate(pages * kPageBytes - random() % kPageBytes);
        if (!block) {
          ++refusals;
          // Never refused where one free stretch was long enough.
          std::uint64_t from = arena.begin;
          std::uint64_t longest = 0;
          for (const auto& [offset, end] : taken) {
            longest = std::max(longest, offset - from);
            from = end;
          }
          longest = std::max(longest, arena.memory.size() - from);
          ASSERT_LT(longest, block_capacity(pages * kPageBytes)) << "seed " << seed;
          continue;
        }
        ASSERT_GE(block->capacity, pages * kPageBytes - (kPageBytes - 1));
        const auto next = taken.upper_bound(block->offset);
        ASSERT_TRUE(next == taken.end() || block->offset + block->capacity <= next->first)
            << "overlaps the block after it";
        if (next != taken.begin()) {
          ASSERT_LE(std::prev(next)->second, block->offset) << "overlaps the block before it";
        }
        if (block->zeroed) {
          ASSERT_TRUE(all_bytes_are(arena.data(*block), block->capacity, 0));
        }
        const auto fill = static_cast<unsigned char>(1 + random() % 255);
        fill_bytes(arena.data(*block), block->capacity, fill);
        taken.emplace(block->offset, block->offset + block->capacity);
        live_bytes += block->capacity;
        held.push_back({*block, true, false, fill});
      } else {
        const std::size_t i = random() % held.size();
        const BlockId id = held[i].block.id;
        if (action < 7 && held[i].owner) {
          arena.allocator.owner_releases(id);
          held[i].owner = false;
          drop_if_free(i);
        } else if (action < 8 && held[i].owner) {
          arena.allocator.hand_over(id);
          held[i].other = true;
        } else {
          ASSERT_EQ(arena.allocator.other_side_returns(id), held[i].other);
          held[i].other = false;
          drop_if_free(i);
        }
      }
      if (HasFatalFailure()) return;
      const BlockStats& stats = arena.allocator.stats();
      ASSERT_EQ(stats.live_blocks, held.size());
      ASSERT_EQ(stats.live_bytes, live_bytes);
      ASSERT_EQ(stats.mapped_bytes, stats.live_bytes + stats.idle_bytes);
      ASSERT_LE(stats.mapped_bytes, kPages * kPageBytes);
    }
    EXPECT_GT(refusals, 0U) << "the arena was never full: the test shows less than it says";

    while (!held.empty()) {
      Held& last = held.back();
      if (last.owner) arena.allocator.owner_releases(last.block.id);
      if (last.other) {
        EXPECT_TRUE(arena.allocator.other_side_returns(last.block.id));
      }
      last.owner = last.other = false;
      drop_if_free(held.size() - 1);
    }
    EXPECT_EQ(arena.allocator.stats().live_bytes, 0U);
    EXPECT_TRUE(arena.allocator.allocate(kPages * kPageBytes))
        << "the pieces did not grow together again";
  }
}

}  // namespace
}  // namespace stook::shm
