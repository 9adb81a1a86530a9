// Every execution of the result ring at capacities 1 and 2.
#include "shm/ring.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "tests/cpp/model/checker.h"
#include "tests/cpp/model/model_test.h"

namespace stook::model {
namespace {

struct Slot {
  ModelVar<std::uint64_t> value;
};
using Positions = shm::RingPositions<ModelAtomics>;
using Writer = shm::RingWriter<Slot, ModelAtomics>;
using Reader = shm::RingReader<Slot, ModelAtomics>;

constexpr std::uint64_t kStarts[] = {
    0,
    (std::uint64_t{1} << 32) - 1,
    std::numeric_limits<std::uint64_t>::max() - 1,
    std::numeric_limits<std::uint64_t>::max(),
};

// The producer tries to publish `items` numbered slots and the consumer to take them, each at most
// `attempts` times; what is left is taken when both have ended.
NamedScenario transfer(std::uint64_t capacity, std::uint64_t start, std::uint64_t items,
                       int attempts) {
  return {"capacity " + std::to_string(capacity) + " from " + std::to_string(start),
          [=](Scenario& scenario) {
            struct Shared {
              Positions positions{};
              Slot slots[2];
              std::uint64_t published = 0;
              std::uint64_t taken = 0;
            };
            auto* shared = scenario.make<Shared>();
            shared->positions.tail.store(start);
            shared->positions.head.store(start);
            auto* writer = scenario.make<Writer>(shared->positions, shared->slots, capacity, start);
            auto* reader = scenario.make<Reader>(shared->positions, shared->slots, capacity, start);

            const auto take = [=] {
              const Slot* slot = reader->front();
              if (slot == nullptr) return false;
              require(slot->value == 100 + shared->taken, "a slot is lost, repeated or overtaken");
              ++shared->taken;
              reader->pop();
              return true;
            };
            scenario.thread("producer", [=] {
              for (int i = 0; i < attempts && shared->published < items; ++i) {
                Slot* slot = writer->prepare();
                if (slot == nullptr) continue;
                slot->value = 100 + shared->published;
                ++shared->published;
                writer->publish();
              }
            });
            scenario.thread("consumer", [=] {
              for (int i = 0; i < attempts; ++i) take();
            });
            scenario.finally([=] {
              require(shared->published >= capacity, "the ring holds less than its capacity");
              while (take()) {
              }
              require(shared->taken == shared->published, "a published slot never arrives");
              for (std::uint64_t i = 0; i < capacity; ++i) {
                require(writer->prepare() != nullptr, "an empty ring takes less than its capacity");
                writer->publish();
              }
              require(writer->prepare() == nullptr, "a full ring takes one more");
            });
          }};
}

class RingModel : public ModelTest {};

std::vector<NamedScenario> scenarios() {
  std::vector<NamedScenario> all;
  for (const std::uint64_t start : kStarts) {
    all.push_back(transfer(1, start, 3, 4));
    all.push_back(transfer(2, start, 4, 5));
  }
  return all;
}

TEST_F(RingModel, EverySlotArrivesOnceInOrder) {
  for (const NamedScenario& scenario : scenarios()) {
    const Report report = explore(scenario.build);
    EXPECT_TRUE(report.passed()) << scenario.name << ": " << report;
  }
}

// A producer that dies between prepare and publish has published nothing.
TEST_F(RingModel, AnUnpublishedSlotIsNotSeen) {
  const Report report = explore([](Scenario& scenario) {
    struct Shared {
      Positions positions{};
      Slot slots[2];
      int taken = 0;
    };
    auto* shared = scenario.make<Shared>();
    auto* writer = scenario.make<Writer>(shared->positions, shared->slots, 2u);
    auto* reader = scenario.make<Reader>(shared->positions, shared->slots, 2u);
    scenario.thread("producer", [=] {
      writer->prepare()->value = 100;
      writer->publish();
      writer->prepare()->value = 101;
    });
    scenario.thread("consumer", [=] {
      for (int i = 0; i < 3; ++i) {
        if (const Slot* slot = reader->front()) {
          require(slot->value == 100, "only the first slot was published");
          ++shared->taken;
          reader->pop();
        }
      }
    });
    scenario.finally([=] { require(shared->taken <= 1, "one slot was published"); });
  });
  EXPECT_TRUE(report.passed()) << report;
}

TEST_F(RingModel, EveryMemoryOrderIsNeeded) {
  int tried = 0;
  EXPECT_EQ(surviving_weakenings(scenarios(), "shm/ring.h", &tried), std::vector<std::string>{});
  EXPECT_EQ(tried, 4);
}

}  // namespace
}  // namespace stook::model
