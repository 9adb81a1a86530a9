#include "workers/protocol.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace stook::workers {
namespace {

TEST(ControlLayout, HeaderCellsAndJobsDoNotOverlap) {
  for (const std::uint32_t workers : {1U, 2U, 31U, 64U, 1000U}) {
    const ControlLayout layout{workers, 256};
    EXPECT_GE(layout.cells_offset(), sizeof(ControlHeader));
    EXPECT_EQ(layout.cells_offset() % alignof(WorkerCell), 0U);
    EXPECT_GE(layout.jobs_offset(), layout.cells_offset() + workers * sizeof(WorkerCell));
    EXPECT_EQ(layout.jobs_offset() % alignof(JobSlot), 0U);
    EXPECT_EQ(layout.total_bytes(), layout.jobs_offset() + 256 * sizeof(JobSlot));
  }
}

TEST(ControlLayout, WordsOfDifferentWritersLieApart) {
  EXPECT_EQ(sizeof(WorkerCell) % shm::kIsolation, 0U);
  EXPECT_GE(offsetof(WorkerCell, handed_bytes) - offsetof(WorkerCell, sleep), shm::kIsolation);
  const std::vector<std::size_t> words = {
      offsetof(ControlHeader, jobs),       offsetof(ControlHeader, delivered),
      offsetof(ControlHeader, parent),     offsetof(ControlHeader, released_bytes),
      offsetof(ControlHeader, job_wanted), offsetof(ControlHeader, memory_wanted)};
  for (std::size_t i = 1; i < words.size(); ++i) {
    EXPECT_GE(words[i] - words[i - 1], shm::kIsolation) << i;
    EXPECT_EQ(words[i] % shm::kIsolation, 0U) << i;
  }
}

TEST(ControlView, FindsCellsAndJobsByNumber) {
  const ControlLayout layout{3, 8};
  const shm::FileDescriptor fd = shm::create_shared_memory("stook-test", layout.total_bytes());
  const shm::Mapping memory(fd.get(), layout.total_bytes(), shm::Access::kReadWrite);
  const Control control(memory.data(), layout);
  EXPECT_EQ(reinterpret_cast<std::byte*>(&control.cell(0)), memory.data() + layout.cells_offset());
  EXPECT_EQ(&control.cell(2) - &control.cell(0), 2);
  EXPECT_EQ(&control.job(8), &control.job(0)) << "slots are reused";
  EXPECT_EQ(&control.job(13) - control.jobs(), 5);
}

TEST(ControlView, OutstandingBytesAreWhatWasHandedOverAndNotReleased) {
  const ControlLayout layout{3, 8};
  const shm::FileDescriptor fd = shm::create_shared_memory("stook-test", layout.total_bytes());
  const shm::Mapping memory(fd.get(), layout.total_bytes(), shm::Access::kReadWrite);
  const Control control(memory.data(), layout);
  EXPECT_EQ(control.outstanding_bytes(), 0U);
  control.cell(0).handed_bytes.store(100);
  control.cell(2).handed_bytes.store(50);
  control.header().released_bytes.store(30);
  EXPECT_EQ(control.outstanding_bytes(), 120U);
  control.header().released_bytes.store(1000);
  EXPECT_EQ(control.outstanding_bytes(), 0U) << "a release seen before its hand-over";
}

TEST(ParentSleep, ExactlyOneJobOrThatOneAndLaterOnes) {
  const std::uint64_t exact = parent_sleeps_until(7, true);
  EXPECT_FALSE(parent_wants(exact, 6));
  EXPECT_TRUE(parent_wants(exact, 7));
  EXPECT_FALSE(parent_wants(exact, 8));
  const std::uint64_t from = parent_sleeps_until(7, false);
  EXPECT_FALSE(parent_wants(from, 6));
  EXPECT_TRUE(parent_wants(from, 7));
  EXPECT_TRUE(parent_wants(from, 8));
  EXPECT_NE(parent_sleeps_until(0, false), shm::kAwake);
}

TEST(Progress, CountsTheItemsOfItsOwnJobAlone) {
  EXPECT_EQ(items_begun(progress_word(7, 3), 7), 3U);
  EXPECT_EQ(items_begun(progress_word(7, 3), 8), 0U) << "left by an earlier job";
  EXPECT_EQ(items_begun(0, 7), 0U);
  const std::uint64_t late = (std::uint64_t{1} << 45) + 5;  // the upper bits are cut off
  EXPECT_EQ(items_begun(progress_word(late, kMostItems), late), kMostItems);
}

TEST(ResultSlot, FillsItsKibibyteWithoutGaps) {
  EXPECT_EQ(offsetof(ResultSlot, bytes) + kResultInlineBytes, kResultSlotBytes);
  EXPECT_GE(kResultInlineBytes, sizeof(BlockRef)) << "a reference to a large envelope fits";
  EXPECT_EQ(offsetof(ResultSlot, bytes) % alignof(BlockRef), 0U);
  EXPECT_EQ(offsetof(JobSlot, payload) % alignof(BlockRef), 0U);
}

}  // namespace
}  // namespace stook::workers
