// Every execution of the doorbell: a sleeper that nobody wakes is a deadlock of the scenario.
#include "shm/doorbell.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "shm/ring.h"
#include "tests/cpp/model/checker.h"
#include "tests/cpp/model/model_test.h"

namespace stook::model {
namespace {

using Counter = ModelAtomics::Atomic<std::uint64_t>;

struct Doorbell {
  shm::DoorbellWord<ModelAtomics> word{};
  EventFd bell;
};

// Waits until `look()` finds something: look, announce, look once more, sleep.
template <class Look>
void await(Doorbell* door, std::uint64_t reason, const Look& look) {
  while (!look()) {
    shm::announce_sleep(door->word, reason);
    if (look()) {
      shm::wake_up(door->word);
      return;
    }
    door->bell.poll();
    door->bell.drain();
    shm::wake_up(door->word);
  }
}

void wake(Doorbell* door, std::uint64_t reason) {
  if (shm::take_sleeper(door->word, [=](std::uint64_t asked) { return (asked & reason) != 0; })) {
    door->bell.ring();
  }
}

// One sleeper waits for `items` things, which as many wakers publish.
NamedScenario publish(std::uint64_t wakers, std::uint64_t items_each) {
  return {std::to_string(wakers) + " wakers", [=](Scenario& scenario) {
            auto* door = scenario.make<Doorbell>();
            auto* published = scenario.make<Counter>(0u);
            scenario.thread("sleeper", [=] {
              for (std::uint64_t i = 1; i <= wakers * items_each; ++i) {
                await(door, 1, [=] { return published->load(std::memory_order_acquire) >= i; });
              }
            });
            for (std::uint64_t waker = 0; waker < wakers; ++waker) {
              scenario.thread("waker", [=] {
                for (std::uint64_t i = 0; i < items_each; ++i) {
                  published->fetch_add(1, std::memory_order_release);
                  wake(door, 1);
                }
              });
            }
          }};
}

// The sleeper waits for either of two things, then for the other; each waker knows only one.
NamedScenario reasons() {
  return {"two reasons", [](Scenario& scenario) {
            auto* door = scenario.make<Doorbell>();
            auto* first = scenario.make<Counter>(0u);
            auto* second = scenario.make<Counter>(0u);
            const auto is_set = [](Counter* flag) {
              return flag->load(std::memory_order_acquire) != 0;
            };
            scenario.thread("sleeper", [=] {
              await(door, 1 | 2, [=] { return is_set(first) || is_set(second); });
              await(door, 1, [=] { return is_set(first); });
              await(door, 2, [=] { return is_set(second); });
            });
            scenario.thread("first", [=] {
              first->store(1, std::memory_order_release);
              wake(door, 1);
            });
            scenario.thread("second", [=] {
              second->store(1, std::memory_order_release);
              wake(door, 2);
            });
          }};
}

// Two sleepers wait for one thing; the waker rings both behind one fence.
NamedScenario ring_all() {
  return {"one waker, two sleepers", [](Scenario& scenario) {
            auto* doors = scenario.make<std::array<Doorbell, 2>>();
            auto* published = scenario.make<Counter>(0u);
            for (std::size_t i = 0; i < 2; ++i) {
              scenario.thread("sleeper", [=] {
                await(&(*doors)[i], 1,
                      [=] { return published->load(std::memory_order_relaxed) != 0; });
              });
            }
            scenario.thread("waker", [=] {
              published->store(1, std::memory_order_relaxed);
              shm::doorbell_fence<ModelAtomics>();
              for (Doorbell& door : *doors) {
                if (shm::take_sleeper_after_fence(door.word, [](std::uint64_t) { return true; })) {
                  door.bell.ring();
                }
              }
            });
          }};
}

// Sleepers behind one flag, as the manager has its workers: the parent publishes two items, and
// rings every sleeper when the flag is set. The worker waits for an item. The passer-by announces
// itself likewise, but takes an item only if it finds one at once, and goes. So one item is left
// for the worker, and if it sleeps beside that, it is a deadlock.
struct Crowd {
  Counter items;
  Counter wanted;
  shm::DoorbellWord<ModelAtomics> words[2] = {};
  EventFd bells[2];

  bool take_item() {
    std::uint64_t count = items.load(std::memory_order_relaxed);
    while (count != 0) {
      if (items.compare_exchange_strong(count, count - 1, std::memory_order_relaxed,
                                        std::memory_order_relaxed)) {
        return true;
      }
    }
    return false;
  }

  template <class Announce>
  void work(const Announce& announce) {
    for (;;) {
      announce(words[0], wanted);
      if (take_item()) return;
      bells[0].wait();
      if (take_item()) return;
    }
  }

  template <class Announce>
  void pass_by(const Announce& announce) {
    announce(words[1], wanted);
    take_item();
    shm::wake_up(words[1]);
  }

  void publish() {
    items.fetch_add(1, std::memory_order_relaxed);
    shm::doorbell_fence<ModelAtomics>();
    if (!shm::take_wanted(wanted)) return;
    for (std::size_t i = 0; i < 2; ++i) {
      if (shm::take_sleeper_after_fence(words[i], [](std::uint64_t) { return true; })) {
        bells[i].ring();
      }
    }
  }
};

// With a passer-by who announces itself, or a thief who takes an item without a word.
template <class Announce>
NamedScenario crowd(bool announced, const Announce& announce) {
  return {announced ? "a worker and a passer-by" : "a worker and a thief", [=](Scenario& scenario) {
            auto* shared = scenario.make<Crowd>();
            scenario.thread("worker", [=] { shared->work(announce); });
            if (announced) {
              scenario.thread("passer-by", [=] { shared->pass_by(announce); });
            } else {
              scenario.thread("thief", [=] { shared->take_item(); });
            }
            scenario.thread("parent", [=] {
              shared->publish();
              shared->publish();
            });
          }};
}

constexpr auto kAnnounce = [](shm::DoorbellWord<ModelAtomics>& word, Counter& wanted) {
  shm::announce_sleep(word, 1, wanted);
};

// A ring of one slot, with a doorbell each way: the producer sleeps when it is full, the consumer
// when it is empty.
NamedScenario both_directions() {
  return {"both directions", [](Scenario& scenario) {
            struct Slot {
              ModelVar<std::uint64_t> value;
            };
            struct Shared {
              shm::RingPositions<ModelAtomics> positions{};
              Slot slots[1];
            };
            auto* shared = scenario.make<Shared>();
            auto* not_empty = scenario.make<Doorbell>();
            auto* not_full = scenario.make<Doorbell>();
            scenario.thread("producer", [=] {
              shm::RingWriter<Slot, ModelAtomics> writer(shared->positions, shared->slots, 1);
              for (std::uint64_t i = 0; i < 2; ++i) {
                Slot* slot = nullptr;
                await(not_full, 1, [&] { return (slot = writer.prepare()) != nullptr; });
                slot->value = i;
                writer.publish();
                wake(not_empty, 1);
              }
            });
            scenario.thread("consumer", [=] {
              shm::RingReader<Slot, ModelAtomics> reader(shared->positions, shared->slots, 1);
              for (std::uint64_t i = 0; i < 2; ++i) {
                const Slot* slot = nullptr;
                await(not_empty, 1, [&] { return (slot = reader.front()) != nullptr; });
                require(slot->value == i, "a slot is lost, repeated or overtaken");
                reader.pop();
                wake(not_full, 1);
              }
            });
          }};
}

class DoorbellModel : public ModelTest {};

std::vector<NamedScenario> scenarios() {
  return {publish(1, 1), publish(1, 2),     publish(2, 1),          reasons(),
          ring_all(),    both_directions(), crowd(false, kAnnounce)};
}

TEST_F(DoorbellModel, NoWakeUpIsLost) {
  for (const NamedScenario& scenario : scenarios()) {
    const Report report = explore(scenario.build);
    EXPECT_TRUE(report.passed()) << scenario.name << ": " << report;
  }
}

TEST_F(DoorbellModel, EveryMemoryOrderIsNeeded) {
  int tried = 0;
  EXPECT_EQ(surviving_weakenings(scenarios(), "shm/doorbell.h", &tried),
            std::vector<std::string>{});
  EXPECT_EQ(tried, 8);
}

// Several sleepers must set their flag by a read-modify-write. A plain store ends the release
// sequence of another sleeper's: who then clears the flag need not see the other's reason, and if
// the item is gone when that one looks, it sleeps with the flag down. (An awake worker takes the
// next item later.)
TEST_F(DoorbellModel, AFlagSetByStoreMayHideASleeper) {
  const auto announce = [](bool by_exchange) {
    return [=](shm::DoorbellWord<ModelAtomics>& word, Counter& wanted) {
      word.reason.store(1, std::memory_order_relaxed);
      if (by_exchange) {
        wanted.exchange(1, std::memory_order_release);
      } else {
        wanted.store(1, std::memory_order_release);
      }
      ModelAtomics::fence(std::memory_order_seq_cst);
    };
  };
  const Report stored = explore(crowd(true, announce(false)).build);
  EXPECT_EQ(stored.failure, "deadlock: nobody wakes worker") << stored;
  const Report exchanged = explore(crowd(true, announce(true)).build);
  EXPECT_TRUE(exchanged.passed()) << exchanged;
  const Report ours = explore(crowd(true, kAnnounce).build);
  EXPECT_TRUE(ours.passed()) << ours;
}

// The sleeper must look again between announcing and sleeping.
TEST_F(DoorbellModel, SleepingWithoutASecondLookLosesAWakeUp) {
  const Report report = explore([](Scenario& scenario) {
    auto* door = scenario.make<Doorbell>();
    auto* published = scenario.make<Counter>(0u);
    scenario.thread("sleeper", [=] {
      if (published->load(std::memory_order_acquire) != 0) return;
      shm::announce_sleep(door->word, 1);
      door->bell.poll();
    });
    scenario.thread("waker", [=] {
      published->store(1, std::memory_order_release);
      wake(door, 1);
    });
  });
  EXPECT_EQ(report.failure, "deadlock: nobody wakes sleeper") << report;
}

// Of several wakers one rings: a sleeper costs one system call.
TEST_F(DoorbellModel, OneWakerRings) {
  const Report report = explore([](Scenario& scenario) {
    struct Shared {
      Doorbell door;
      int rings[2] = {};
    };
    auto* shared = scenario.make<Shared>();
    shared->door.word.reason.store(1);
    for (int i = 0; i < 2; ++i) {
      scenario.thread("waker", [=] {
        shared->rings[i] = shm::take_sleeper(shared->door.word, [](std::uint64_t) { return true; });
      });
    }
    scenario.finally([=] { require(shared->rings[0] + shared->rings[1] == 1, "one waker rings"); });
  });
  EXPECT_TRUE(report.passed()) << report;
}

}  // namespace
}  // namespace stook::model
