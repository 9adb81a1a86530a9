#include "shm/arena.h"

#include <gtest/gtest.h>

#include "workers/protocol.h"

namespace stook::shm {
namespace {

using workers::ResultSlot;

TEST(Arena, HeaderSlotsAndBlocksDoNotOverlap) {
  for (const std::uint64_t slots : {1U, 2U, 64U, 4096U}) {
    const ArenaLayout layout{slots, sizeof(ResultSlot), std::uint64_t{1} << 30};
    EXPECT_LE(sizeof(ArenaHeader), ArenaLayout::kSlotsOffset);
    EXPECT_GE(layout.first_block_offset(), ArenaLayout::kSlotsOffset + slots * sizeof(ResultSlot));
    EXPECT_LT(layout.first_block_offset(),
              ArenaLayout::kSlotsOffset + slots * sizeof(ResultSlot) + kPageBytes);
    EXPECT_EQ(layout.first_block_offset() % kPageBytes, 0U) << "blocks are whole pages";
    EXPECT_EQ(ArenaLayout::kSlotsOffset % alignof(ResultSlot), 0U);
  }
}

TEST(Arena, WordsOfDifferentWritersLieApart) {
  EXPECT_EQ(offsetof(ArenaHeader, returned) % kIsolation, 0U);
  EXPECT_EQ(offsetof(ArenaHeader, results) % kIsolation, 0U);
  EXPECT_GE(offsetof(RingPositions<>, head) - offsetof(RingPositions<>, tail), kIsolation);
}

TEST(Arena, FreshMemoryIsAnEmptyArena) {
  const ArenaLayout layout{16, sizeof(ResultSlot), std::uint64_t{1} << 20};
  const FileDescriptor fd = create_shared_memory("stook-test", layout.total_bytes);
  const Mapping memory(fd.get(), layout.total_bytes, Access::kReadWrite);
  ArenaHeader& header = arena_header(memory);
  RingReader<ResultSlot> reader(
      header.results, reinterpret_cast<ResultSlot*>(memory.data() + ArenaLayout::kSlotsOffset),
      layout.slot_count);
  EXPECT_EQ(reader.front(), nullptr);
  int returned = 0;
  harvest_blocks(header.returned, ReturnBitmapWords<>::kBlocks, [&](std::uint32_t) { ++returned; });
  EXPECT_EQ(returned, 0);
}

}  // namespace
}  // namespace stook::shm
