#include "shm/ring.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace stook::shm {
namespace {

constexpr std::uint64_t kCapacity = 4;

class RingTest : public ::testing::Test {
 protected:
  bool push(std::uint64_t value) {
    std::uint64_t* slot = writer_.prepare();
    if (slot == nullptr) return false;
    *slot = value;
    writer_.publish();
    return true;
  }

  RingPositions<> positions_{};
  std::uint64_t slots_[kCapacity]{};
  RingWriter<std::uint64_t> writer_{positions_, slots_, kCapacity};
  RingReader<std::uint64_t> reader_{positions_, slots_, kCapacity};
};

TEST_F(RingTest, DeliversInOrderThroughManyWraps) {
  for (std::uint64_t value = 0; value < 1000; ++value) {
    ASSERT_TRUE(push(value));
    ASSERT_NE(reader_.front(), nullptr);
    EXPECT_EQ(*reader_.front(), value);
    reader_.pop();
    EXPECT_EQ(reader_.front(), nullptr);
  }
}

TEST_F(RingTest, HoldsItsWholeCapacityAndThenRefuses) {
  for (std::uint64_t value = 0; value < kCapacity; ++value) ASSERT_TRUE(push(value));
  EXPECT_FALSE(push(99));
  EXPECT_EQ(*reader_.front(), 0U) << "a refused push overwrote a slot";
  reader_.pop();
  EXPECT_TRUE(push(4));
  EXPECT_FALSE(push(5));
}

TEST_F(RingTest, APreparedSlotIsNotSeenBeforeItIsPublished) {
  std::uint64_t* slot = writer_.prepare();
  *slot = 7;
  EXPECT_EQ(reader_.front(), nullptr);
  EXPECT_EQ(writer_.prepare(), slot) << "preparing again gives the same slot";
  writer_.publish();
  ASSERT_NE(reader_.front(), nullptr);
  EXPECT_EQ(*reader_.front(), 7U);
}

TEST_F(RingTest, TheFrontStaysUntilItIsPopped) {
  push(1);
  push(2);
  EXPECT_EQ(*reader_.front(), 1U);
  EXPECT_EQ(*reader_.front(), 1U);
  reader_.pop();
  EXPECT_EQ(*reader_.front(), 2U);
}

TEST_F(RingTest, APositionThatCannotBeIsNotBelieved) {
  push(1);
  reader_.front();
  reader_.pop();
  positions_.tail.store(1000000);
  EXPECT_EQ(reader_.front(), nullptr);
  positions_.tail.store(0);  // before what was read
  EXPECT_EQ(reader_.front(), nullptr);
}

TEST_F(RingTest, PositionsMayBeginAnywhereAndWrapTheirWord) {
  const std::uint64_t start = ~std::uint64_t{0} - 1;
  positions_.tail.store(start);
  positions_.head.store(start);
  RingWriter<std::uint64_t> writer(positions_, slots_, kCapacity, start);
  RingReader<std::uint64_t> reader(positions_, slots_, kCapacity, start);
  for (std::uint64_t value = 0; value < 8; ++value) {
    std::uint64_t* slot = writer.prepare();
    ASSERT_NE(slot, nullptr);
    *slot = value;
    writer.publish();
    ASSERT_NE(reader.front(), nullptr);
    EXPECT_EQ(*reader.front(), value);
    reader.pop();
  }
}

}  // namespace
}  // namespace stook::shm
