// A million slots through one ring, with a real producer and a real consumer.
#include <gtest/gtest.h>

#include <cstdint>
#include <thread>

#include "shm/ring.h"
#include "tests/cpp/stress/shared_page.h"

namespace stook {
namespace {

constexpr std::uint64_t kItems = 1'000'000;

template <std::uint64_t kCapacity>
struct Ring {
  shm::RingPositions<> positions{};
  Checked slots[kCapacity];
};

template <std::uint64_t kCapacity>
void transfer(std::uint64_t start, std::uint64_t items) {
  SharedPage<Ring<kCapacity>> ring;
  ring->positions.tail.store(start);
  ring->positions.head.store(start);

  std::thread producer([&] {
    shm::RingWriter<Checked> writer(ring->positions, ring->slots, kCapacity, start);
    for (std::uint64_t item = 0; item < items; ++item) {
      Checked* slot;
      while ((slot = writer.prepare()) == nullptr) std::this_thread::yield();
      slot->write(item);
      writer.publish();
    }
  });

  shm::RingReader<Checked> reader(ring->positions, ring->slots, kCapacity, start);
  std::uint64_t wrong = 0;
  for (std::uint64_t item = 0; item < items; ++item) {
    const Checked* slot;
    while ((slot = reader.front()) == nullptr) std::this_thread::yield();
    wrong += !slot->holds(item);
    reader.pop();
  }
  producer.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(reader.front(), nullptr);
}

TEST(RingStress, AMillionSlotsArriveInOrder) { transfer<256>(0, kItems); }

TEST(RingStress, OneSlotAcrossTheWrapOfPositions) { transfer<1>(UINT64_MAX - 10'000, 20'000); }

}  // namespace
}  // namespace stook
