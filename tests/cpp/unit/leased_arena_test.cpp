#include "shm/leased_arena.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <fstream>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "shm/reclaimer.h"
#include "tests/cpp/unit/child_process.h"
#include "tests/cpp/unit/shared_pages.h"

namespace stook::shm {
namespace {

constexpr std::uint64_t kBlocks = 512;

class CountingObserver : public ReleaseObserver {
 public:
  void on_release(std::uint64_t bytes) noexcept override {
    bytes_.fetch_add(bytes);
    calls_.fetch_add(1);
  }
  std::uint64_t bytes() const { return bytes_.load(); }
  std::uint64_t calls() const { return calls_.load(); }

 private:
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> calls_{0};
};

std::size_t mappings_of(const std::string& label) {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("memfd:" + label) != std::string::npos ? 1U : 0U;
  }
  return count;
}

class LeasedArenaTest : public ::testing::Test {
 protected:
  // Of this test's own, for it counts mappings.
  const std::string label_ =
      std::string("stook-") + ::testing::UnitTest::GetInstance()->current_test_info()->name();

  LeasedArenaTest()
      : layout_{4, 1024, ArenaLayout{4, 1024, 0}.first_block_offset() + kBlocks * kPageBytes},
        fd_(create_shared_memory(label_.c_str(), layout_.total_bytes)),
        observer_(std::make_shared<CountingObserver>()),
        arena_(LeasedArena::open(fd_.get(), layout_, observer_)) {}
  ~LeasedArenaTest() override {
    if (arena_ == nullptr) return;
    for (BlockId id = 0; arena_->held_blocks() != 0; ++id) arena_->release(id);
    arena_->drop_reference();
  }

  std::uint64_t offset(BlockId id) const { return layout_.first_block_offset() + id * kPageBytes; }
  std::byte* data(BlockId id) const { return arena_->memory().data() + offset(id); }
  bool lease(BlockId id) { return arena_->lease(id, offset(id), kPageBytes); }
  std::vector<BlockId> returned() const {
    std::vector<BlockId> blocks;
    harvest_blocks(arena_->header().returned, kMaxBlocks,
                   [&](BlockId id) { blocks.push_back(id); });
    return blocks;
  }
  std::uint64_t backed(BlockId first, std::uint64_t count) const {
    return backed_pages(arena_->memory(), offset(first), count * kPageBytes);
  }

  ArenaLayout layout_;
  FileDescriptor fd_;
  std::shared_ptr<CountingObserver> observer_;
  LeasedArena* arena_;
};

TEST_F(LeasedArenaTest, AReleasedBlockGoesBackToTheWorkerOnce) {
  ASSERT_TRUE(lease(7));
  EXPECT_EQ(arena_->held_blocks(), 1U);
  EXPECT_EQ(arena_->held_bytes(), kPageBytes);
  EXPECT_TRUE(returned().empty());
  arena_->release(7);
  EXPECT_EQ(arena_->held_blocks(), 0U);
  EXPECT_EQ(arena_->held_bytes(), 0U);
  EXPECT_EQ(returned(), std::vector<BlockId>{7});
  EXPECT_EQ(observer_->bytes(), kPageBytes);
  EXPECT_TRUE(lease(7)) << "handed over again";
}

TEST_F(LeasedArenaTest, ASecondReleaseChangesNothing) {
  ASSERT_TRUE(lease(7));
  ASSERT_TRUE(lease(8));
  arena_->release(7);
  arena_->release(7);
  arena_->release(100);  // never leased
  EXPECT_EQ(returned(), std::vector<BlockId>{7});
  EXPECT_EQ(arena_->held_blocks(), 1U);
  EXPECT_EQ(observer_->calls(), 1U);
}

TEST_F(LeasedArenaTest, WhatCannotBeTrueIsNotLeased) {
  constexpr std::uint64_t kMost = ~std::uint64_t{0};
  const std::uint64_t end = layout_.total_bytes;
  EXPECT_FALSE(arena_->lease(kMaxBlocks, offset(0), kPageBytes)) << "an id that cannot be";
  EXPECT_FALSE(arena_->lease(~BlockId{0}, offset(0), kPageBytes));
  EXPECT_FALSE(arena_->lease(1, 0, kPageBytes)) << "the header is no block";
  EXPECT_FALSE(arena_->lease(1, layout_.first_block_offset() - kPageBytes, kPageBytes));
  EXPECT_FALSE(arena_->lease(1, end, 1)) << "behind the end";
  EXPECT_FALSE(arena_->lease(1, end - kPageBytes, kPageBytes + 1)) << "over the end";
  EXPECT_FALSE(arena_->lease(1, kMost - kPageBytes + 1, kPageBytes));
  EXPECT_FALSE(arena_->lease(1, offset(0), kMost)) << "offset + bytes wraps";
  EXPECT_FALSE(arena_->lease(1, offset(0) + 1, 1)) << "blocks begin with a page";
  EXPECT_EQ(arena_->held_blocks(), 0U);
  EXPECT_EQ(arena_->held_bytes(), 0U);
  arena_->release(1);
  EXPECT_TRUE(returned().empty()) << "a refused lease was released";
  EXPECT_TRUE(arena_->lease(1, end - kPageBytes, kPageBytes)) << "the last page is a block";
}

TEST_F(LeasedArenaTest, ABlockIsLeasedOnceAtATime) {
  ASSERT_TRUE(lease(3));
  EXPECT_FALSE(lease(3));
  EXPECT_FALSE(arena_->lease(3, offset(9), kPageBytes)) << "the same id elsewhere";
  EXPECT_EQ(arena_->held_blocks(), 1U);
  arena_->release(3);
  EXPECT_TRUE(lease(3));
}

TEST_F(LeasedArenaTest, ThreadsReleaseInAnyOrder) {
  constexpr BlockId kThreads = 4;
  for (BlockId id = 0; id < kBlocks; ++id) ASSERT_TRUE(lease(id));
  std::vector<std::thread> threads;
  for (BlockId thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      // Every block is released by two threads; one of them is heard.
      for (BlockId id = 0; id < kBlocks; ++id) {
        if (id % kThreads == thread || (id + 1) % kThreads == thread) arena_->release(id);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(returned().size(), kBlocks);
  EXPECT_EQ(observer_->bytes(), kBlocks * kPageBytes);
  EXPECT_EQ(arena_->held_bytes(), 0U);
}

TEST_F(LeasedArenaTest, StaysMappedUntilTheLastLeaseIsGone) {
  ASSERT_TRUE(lease(0));
  ASSERT_TRUE(lease(1));
  fill_bytes(data(1), kPageBytes, 0xCD);
  std::byte* bytes = data(1);
  LeasedArena* arena = arena_;
  arena_->retire();
  arena_->drop_reference();  // the manager's
  arena_ = nullptr;
  EXPECT_EQ(mappings_of(label_), 1U);
  arena->release(0);
  EXPECT_TRUE(all_bytes_are(bytes, kPageBytes, 0xCD));
  EXPECT_EQ(mappings_of(label_), 1U);
  arena->release(1);
  EXPECT_EQ(mappings_of(label_), 0U);
}

TEST_F(LeasedArenaTest, RetiringGivesBackAllButTheHeldBlocks) {
  fill_bytes(data(0), kBlocks * kPageBytes, 0xAB);
  for (const BlockId id : {0U, 1U, 100U, 511U}) ASSERT_TRUE(lease(id));

  arena_->retire();

  EXPECT_EQ(backed(0, kBlocks), 4U);
  for (const BlockId id : {0U, 1U, 100U, 511U}) {
    EXPECT_TRUE(all_bytes_are(data(id), kPageBytes, 0xAB)) << "a held block was punched";
  }
  arena_->release(100);
  EXPECT_EQ(backed(0, kBlocks), 3U) << "a block of a dead worker goes back to the system";
  EXPECT_TRUE(returned().empty()) << "nobody is there to harvest it";
  for (const BlockId id : {0U, 1U, 511U}) arena_->release(id);
  EXPECT_EQ(backed(0, kBlocks), 0U);
}

TEST_F(LeasedArenaTest, BytesReleasedAfterRetiringAreHeardOf) {
  ASSERT_TRUE(lease(0));
  ASSERT_TRUE(lease(1));
  arena_->release(0);
  arena_->retire();
  EXPECT_EQ(observer_->bytes(), kPageBytes) << "what is still held is still outstanding";
  arena_->release(1);
  // Otherwise what was held when a worker died would count against the memory limit for ever.
  EXPECT_EQ(observer_->bytes(), 2 * kPageBytes);
}

TEST_F(LeasedArenaTest, TheRingInFrontOfTheBlocksSurvivesRetiring) {
  std::byte* slots = arena_->memory().data() + ArenaLayout::kSlotsOffset;
  fill_bytes(slots, 4 * 1024, 0x11);
  arena_->retire();
  arena_->retire();
  EXPECT_TRUE(all_bytes_are(slots, 4 * 1024, 0x11));
}

TEST_F(LeasedArenaTest, OverlappingLeasesOfALiarDoNotPunchEachOther) {
  fill_bytes(data(0), kBlocks * kPageBytes, 0xAB);
  ASSERT_TRUE(arena_->lease(0, offset(0), 64 * kPageBytes));
  ASSERT_TRUE(arena_->lease(1, offset(8), kPageBytes));
  arena_->retire();
  EXPECT_EQ(backed(0, 64), 64U);
  EXPECT_EQ(backed(64, kBlocks - 64), 0U);
  arena_->release(1);
  arena_->release(0);
}

TEST_F(LeasedArenaTest, RetiringWhileThreadsRelease) {
  constexpr BlockId kThreads = 3;
  for (int round = 0; round < 30; ++round) {
    const FileDescriptor fd = create_shared_memory(label_.c_str(), layout_.total_bytes);
    LeasedArena* arena = LeasedArena::open(fd.get(), layout_, observer_);
    std::byte* first = arena->memory().data() + offset(0);
    for (BlockId id = 0; id < kBlocks; ++id) {
      ASSERT_TRUE(arena->lease(id, offset(id), kPageBytes));
      fill_bytes(first + id * kPageBytes, kPageBytes, static_cast<unsigned char>(1 + id % 255));
    }
    std::atomic<BlockId> started{0};
    std::vector<std::thread> threads;
    for (BlockId thread = 0; thread < kThreads; ++thread) {
      threads.emplace_back([&, thread] {
        started.fetch_add(1);
        while (started.load() < kThreads + 1) std::this_thread::yield();
        // Every fourth block stays held.
        for (BlockId id = thread; id < kBlocks; id += kThreads) {
          if (id % 4 != 0) arena->release(id);
        }
      });
    }
    started.fetch_add(1);
    arena->retire();
    for (auto& thread : threads) thread.join();

    for (BlockId id = 0; id < kBlocks; id += 4) {
      ASSERT_TRUE(all_bytes_are(first + id * kPageBytes, kPageBytes,
                                static_cast<unsigned char>(1 + id % 255)))
          << "held block " << id << " lost its bytes in round " << round;
    }
    EXPECT_EQ(backed_pages(arena->memory(), offset(0), kBlocks * kPageBytes), kBlocks / 4)
        << "memory that nobody holds was not given back";
    for (BlockId id = 0; id < kBlocks; id += 4) arena->release(id);
    EXPECT_EQ(backed_pages(arena->memory(), offset(0), kBlocks * kPageBytes), 0U);
    arena->drop_reference();
  }
}

TEST_F(LeasedArenaTest, HeldBytesSurviveTheDeathOfTheWorkerThatWroteThem) {
  const int status = status_of_child([&] {
    const Mapping memory(fd_.get(), layout_.total_bytes, Access::kReadWrite);
    fill_bytes(memory.data() + offset(5), kPageBytes, 0x5A);
    ::kill(::getpid(), SIGKILL);
    return 0;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  ASSERT_TRUE(lease(5));
  fd_.reset();
  arena_->retire();
  EXPECT_TRUE(all_bytes_are(data(5), kPageBytes, 0x5A));
  arena_->release(5);
}

TEST_F(LeasedArenaTest, AForkedChildReleasesNothing) {
  ASSERT_TRUE(lease(5));
  fill_bytes(data(5), kPageBytes, 0x5A);
  EXPECT_EQ(exit_code_of_child([&] {
              arena_->release(5);
              arena_->retire();
              return all_bytes_are(data(5), kPageBytes, 0x5A) ? 0 : 1;
            }),
            0);
  EXPECT_TRUE(returned().empty());
  EXPECT_TRUE(all_bytes_are(data(5), kPageBytes, 0x5A));
  arena_->release(5);
  EXPECT_EQ(returned(), std::vector<BlockId>{5}) << "the parent's own lease was lost";
}

// A reclaim thread that is busy until told otherwise: what is submitted meanwhile stays queued.
class BusyReclaimer {
 public:
  BusyReclaimer() {
    configure_reclaimer(1, 1000);
    submit_reclaim(&blocker_);
    blocker_.entered.wait();
  }
  BusyReclaimer(const BusyReclaimer&) = delete;
  BusyReclaimer& operator=(const BusyReclaimer&) = delete;
  ~BusyReclaimer() {
    if (!let_go_) go_on();
    configure_reclaimer(0, 0);
  }
  bool go_on() {
    blocker_.gate.count_down();
    let_go_ = true;
    return flush_reclaimer(std::chrono::seconds{60});
  }

 private:
  struct Blocker final : Reclaimable {
    std::latch entered{1};
    std::latch gate{1};
    void reclaim() noexcept override {
      entered.count_down();
      gate.wait();
    }
    void reclaim_at_exit() noexcept override {}
  };
  Blocker blocker_;
  bool let_go_ = false;
};

TEST_F(LeasedArenaTest, AReclaimThreadUnmapsItAfterTheLastLease) {
  BusyReclaimer reclaimer;
  ASSERT_TRUE(lease(1));
  LeasedArena* arena = arena_;
  arena_ = nullptr;
  arena->drop_reference();
  EXPECT_EQ(reclaimer_stats().outstanding, 1U) << "it went before its last lease";
  arena->release(1);
  EXPECT_EQ(mappings_of(label_), 1U) << "the releasing thread did it";
  EXPECT_EQ(reclaimer_stats().outstanding, 2U);
  ASSERT_TRUE(reclaimer.go_on());
  EXPECT_EQ(mappings_of(label_), 0U);
}

TEST_F(LeasedArenaTest, AReclaimThreadPunchesTheBlocksOfADeadWorker) {
  BusyReclaimer reclaimer;
  fill_bytes(data(0), kBlocks * kPageBytes, 0xAB);
  for (const BlockId id : {3U, 4U}) ASSERT_TRUE(lease(id));
  arena_->retire();
  EXPECT_EQ(backed(0, 3), 3U) << "the retiring thread did it";
  arena_->release(3);
  EXPECT_EQ(observer_->bytes(), kPageBytes) << "releasing is heard of at once";
  EXPECT_EQ(arena_->held_blocks(), 1U);
  EXPECT_EQ(backed(3, 1), 1U) << "the releasing thread did it";
  ASSERT_TRUE(reclaimer.go_on());
  EXPECT_EQ(backed(0, 3), 0U);
  EXPECT_EQ(backed(3, 1), 0U);
  EXPECT_EQ(backed(4, 1), 1U) << "a held block was punched";
  EXPECT_TRUE(returned().empty());
}

// Punching needs the mapping: the last lease's block goes first, then the arena.
TEST_F(LeasedArenaTest, ARetiredArenaIsMappedUntilItsLastBlockIsPunched) {
  BusyReclaimer reclaimer;
  fill_bytes(data(0), kBlocks * kPageBytes, 0xAB);
  const Mapping other(fd_.get(), layout_.total_bytes, Access::kReadWrite);
  for (const BlockId id : {3U, 4U}) ASSERT_TRUE(lease(id));
  LeasedArena* arena = arena_;
  arena_ = nullptr;
  arena->retire();
  arena->drop_reference();
  arena->release(3);
  arena->release(4);
  EXPECT_EQ(reclaimer_stats().outstanding, 4U) << "the arena went before its holes";
  EXPECT_EQ(mappings_of(label_), 2U);
  ASSERT_TRUE(reclaimer.go_on());
  EXPECT_EQ(mappings_of(label_), 1U);
  EXPECT_EQ(backed_pages(other, offset(0), kBlocks * kPageBytes), 0U);
}

TEST_F(LeasedArenaTest, WhatTheWorkerIsAliveForNeedsNoReclaimThread) {
  BusyReclaimer reclaimer;
  ASSERT_TRUE(lease(7));
  arena_->release(7);
  EXPECT_EQ(returned(), std::vector<BlockId>{7});
  EXPECT_EQ(reclaimer_stats().outstanding, 1U);
}

}  // namespace
}  // namespace stook::shm
