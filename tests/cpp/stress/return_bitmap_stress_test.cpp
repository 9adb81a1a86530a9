// Blocks go round between one owner and several releasing threads, without end and without loss.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "shm/return_bitmap.h"
#include "shm/ring.h"
#include "tests/cpp/stress/shared_page.h"

namespace stook {
namespace {

constexpr std::uint32_t kHolders = 3;
constexpr std::uint32_t kBlocks = 128;  // in two words, so that holders share words
constexpr std::uint64_t kHandOvers = 300'000;
constexpr std::uint64_t kRingSlots = 64;

struct HandOver {
  std::uint32_t block;
  std::uint64_t number;
};

struct Shared {
  shm::ReturnBitmapWords<shm::StdAtomics, kBlocks / 64> bitmap{};
  Checked blocks[kBlocks];
  struct {
    shm::RingPositions<> positions{};
    HandOver slots[kRingSlots];
  } rings[kHolders];
};

TEST(ReturnBitmapStress, BlocksGoRoundBetweenOwnerAndHolders) {
  SharedPage<Shared> shared;
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<bool> done{false};

  std::vector<std::thread> holders;
  for (std::uint32_t holder = 0; holder < kHolders; ++holder) {
    holders.emplace_back([&, holder] {
      auto& ring = shared->rings[holder];
      shm::RingReader<HandOver> reader(ring.positions, ring.slots, kRingSlots);
      std::array<HandOver, 3> held{};
      std::size_t count = 0;
      const auto give_back = [&](const HandOver& held_block) {
        if (!shared->blocks[held_block.block].holds(held_block.number)) ++wrong;
        shm::return_block(shared->bitmap, held_block.block);
      };
      for (;;) {
        // Before looking: whoever then finds nothing has seen everything.
        const bool last = done.load(std::memory_order_acquire);
        if (const HandOver* slot = reader.front()) {
          held[count++] = *slot;
          reader.pop();
        } else if (last) {
          break;
        } else {
          std::this_thread::yield();
        }
        // In another order than they came.
        if (count == held.size()) {
          while (count > 0) give_back(held[--count]);
        }
      }
      while (count > 0) give_back(held[--count]);
    });
  }

  std::vector<shm::RingWriter<HandOver>> writers;
  for (auto& ring : shared->rings) {
    writers.emplace_back(ring.positions, ring.slots, kRingSlots);
  }
  std::vector<std::uint32_t> free_blocks;
  std::array<bool, kBlocks> handed_over{};
  for (std::uint32_t block = 0; block < kBlocks; ++block) free_blocks.push_back(block);
  const auto harvest = [&] {
    shm::harvest_blocks(shared->bitmap, kBlocks, [&](std::uint32_t block) {
      if (block >= kBlocks || !handed_over[block]) {
        ++wrong;
        return;
      }
      handed_over[block] = false;
      free_blocks.push_back(block);
    });
  };
  for (std::uint64_t number = 0; number < kHandOvers; ++number) {
    harvest();
    while (free_blocks.empty()) {
      std::this_thread::yield();
      harvest();
    }
    const std::uint32_t block = free_blocks.back();
    free_blocks.pop_back();
    shared->blocks[block].write(number);
    handed_over[block] = true;
    auto& writer = writers[number % kHolders];
    HandOver* slot;
    while ((slot = writer.prepare()) == nullptr) std::this_thread::yield();
    *slot = {block, number};
    writer.publish();
  }
  done.store(true, std::memory_order_release);
  for (auto& holder : holders) holder.join();
  harvest();
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(free_blocks.size(), kBlocks) << "blocks were lost or came back twice";
}

}  // namespace
}  // namespace stook
