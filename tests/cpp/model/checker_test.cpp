// The checker against the litmus tests of the literature: what the memory model allows must be
// seen, what it forbids must not.
#include "tests/cpp/model/checker.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <set>
#include <string>
#include <utility>

namespace stook::model {
namespace {

using Order = std::memory_order;
using Atomic = ModelAtomics::Atomic<std::uint32_t>;
using Pair = std::pair<std::uint32_t, std::uint32_t>;

// Message passing: data, then a flag.
Report message_passing(Order store, Order load) {
  return explore([=](Scenario& scenario) {
    auto* data = scenario.make<ModelVar<int>>(0);
    auto* flag = scenario.make<Atomic>(0u);
    scenario.thread("writer", [=] {
      *data = 42;
      flag->store(1, store);
    });
    scenario.thread("reader", [=] {
      if (flag->load(load) == 1) require(*data == 42, "the data is old");
    });
  });
}

TEST(Checker, MessagePassingNeedsReleaseAndAcquire) {
  EXPECT_TRUE(message_passing(Order::release, Order::acquire).passed());
  EXPECT_TRUE(message_passing(Order::seq_cst, Order::seq_cst).passed());
  for (const auto& [store, load] :
       {std::pair{Order::relaxed, Order::acquire}, std::pair{Order::release, Order::relaxed},
        std::pair{Order::relaxed, Order::relaxed}}) {
    const Report report = message_passing(store, load);
    EXPECT_NE(report.failure.find("data race: reader"), std::string::npos) << report;
    EXPECT_NE(report.trace.find("checker_test.cpp"), std::string::npos) << report;
  }
}

// The same with a relaxed atomic as data: no race, but an old value.
TEST(Checker, RelaxedDataArrivesOldWithoutRelease) {
  for (const bool ordered : {false, true}) {
    std::set<Pair> seen;
    const Report report = explore([&](Scenario& scenario) {
      auto* data = scenario.make<Atomic>(0u);
      auto* flag = scenario.make<Atomic>(0u);
      auto* result = scenario.make<std::array<std::uint32_t, 2>>();
      scenario.thread("writer", [=] {
        data->store(1, Order::relaxed);
        flag->store(1, ordered ? Order::release : Order::relaxed);
      });
      scenario.thread("reader", [=] {
        (*result)[0] = flag->load(ordered ? Order::acquire : Order::relaxed);
        (*result)[1] = data->load(Order::relaxed);
      });
      scenario.finally([=, &seen] { seen.insert({(*result)[0], (*result)[1]}); });
    });
    ASSERT_TRUE(report.passed()) << report;
    const std::set<Pair> weak = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};
    const std::set<Pair> strong = {{0, 0}, {0, 1}, {1, 1}};
    EXPECT_EQ(seen, ordered ? strong : weak);
  }
}

TEST(Checker, FencesOrderRelaxedAccesses) {
  const auto passing = [](bool release_fence, bool acquire_fence) {
    return explore([=](Scenario& scenario) {
      auto* data = scenario.make<ModelVar<int>>(0);
      auto* flag = scenario.make<Atomic>(0u);
      scenario.thread("writer", [=] {
        *data = 42;
        if (release_fence) ModelAtomics::fence(Order::release);
        flag->store(1, Order::relaxed);
      });
      scenario.thread("reader", [=] {
        if (flag->load(Order::relaxed) != 1) return;
        if (acquire_fence) ModelAtomics::fence(Order::acquire);
        require(*data == 42, "the data is old");
      });
    });
  };
  EXPECT_TRUE(passing(true, true).passed());
  EXPECT_FALSE(passing(false, true).failure.empty());
  EXPECT_FALSE(passing(true, false).failure.empty());
}

// Store buffering (Dekker): may both threads miss the other's store?
std::set<Pair> store_buffering(Order store, Order load, Order first_fence, Order second_fence) {
  std::set<Pair> seen;
  const Report report = explore([&](Scenario& scenario) {
    auto* x = scenario.make<Atomic>(0u);
    auto* y = scenario.make<Atomic>(0u);
    auto* result = scenario.make<std::array<std::uint32_t, 2>>();
    scenario.thread("first", [=] {
      x->store(1, store);
      ModelAtomics::fence(first_fence);
      (*result)[0] = y->load(load);
    });
    scenario.thread("second", [=] {
      y->store(1, store);
      ModelAtomics::fence(second_fence);
      (*result)[1] = x->load(load);
    });
    scenario.finally([=, &seen] { seen.insert({(*result)[0], (*result)[1]}); });
  });
  EXPECT_TRUE(report.passed()) << report;
  return seen;
}

TEST(Checker, StoreBufferingIsForbiddenBySeqCstAlone) {
  const std::set<Pair> all = {{0, 0}, {0, 1}, {1, 0}, {1, 1}};
  const std::set<Pair> none_misses = {{0, 1}, {1, 0}, {1, 1}};
  const Order no_fence = Order::relaxed;
  EXPECT_EQ(store_buffering(Order::relaxed, Order::relaxed, no_fence, no_fence), all);
  EXPECT_EQ(store_buffering(Order::release, Order::acquire, no_fence, no_fence), all);
  EXPECT_EQ(store_buffering(Order::relaxed, Order::relaxed, Order::acq_rel, Order::acq_rel), all);
  EXPECT_EQ(store_buffering(Order::relaxed, Order::relaxed, Order::seq_cst, no_fence), all);
  EXPECT_EQ(store_buffering(Order::relaxed, Order::relaxed, no_fence, Order::seq_cst), all);
  EXPECT_EQ(store_buffering(Order::relaxed, Order::relaxed, Order::seq_cst, Order::acq_rel), all);
  EXPECT_EQ(store_buffering(Order::relaxed, Order::relaxed, Order::seq_cst, Order::seq_cst),
            none_misses);
  EXPECT_EQ(store_buffering(Order::seq_cst, Order::seq_cst, no_fence, no_fence), none_misses);
}

// A seq_cst fence orders, but does not publish plain data to whoever fences next.
TEST(Checker, SeqCstFencesAloneDoNotSynchronise) {
  const Report report = explore([](Scenario& scenario) {
    auto* data = scenario.make<ModelVar<int>>(0);
    scenario.thread("writer", [=] {
      *data = 1;
      ModelAtomics::fence(Order::seq_cst);
    });
    scenario.thread("reader", [=] {
      ModelAtomics::fence(Order::seq_cst);
      (void)data->get();
    });
  });
  EXPECT_NE(report.failure.find("data race"), std::string::npos) << report;
}

TEST(Checker, OneLocationIsCoherent) {
  std::set<Pair> seen;
  const Report report = explore([&](Scenario& scenario) {
    auto* x = scenario.make<Atomic>(0u);
    auto* result = scenario.make<std::array<std::uint32_t, 2>>();
    scenario.thread("writer", [=] {
      x->store(1, Order::relaxed);
      x->store(2, Order::relaxed);
    });
    scenario.thread("reader", [=] {
      (*result)[0] = x->load(Order::relaxed);
      (*result)[1] = x->load(Order::relaxed);
    });
    scenario.finally([=, &seen] {
      require(x->load(Order::relaxed) == 2, "the last store is the last");
      seen.insert({(*result)[0], (*result)[1]});
    });
  });
  ASSERT_TRUE(report.passed()) << report;
  EXPECT_EQ(seen, (std::set<Pair>{{0, 0}, {0, 1}, {0, 2}, {1, 1}, {1, 2}, {2, 2}}));
}

// 2+2W: the order of stores to a location is not the order of execution.
TEST(Checker, StoresOfTwoThreadsMayBeOrderedAgainstProgramOrder) {
  for (const bool released : {false, true}) {
    std::set<Pair> seen;
    const Report report = explore([&](Scenario& scenario) {
      auto* x = scenario.make<Atomic>(0u);
      auto* y = scenario.make<Atomic>(0u);
      scenario.thread("first", [=] {
        x->store(1, Order::relaxed);
        if (released) ModelAtomics::fence(Order::seq_cst);
        y->store(2, Order::relaxed);
      });
      scenario.thread("second", [=] {
        y->store(1, Order::relaxed);
        if (released) ModelAtomics::fence(Order::seq_cst);
        x->store(2, Order::relaxed);
      });
      scenario.finally(
          [=, &seen] { seen.insert({x->load(Order::relaxed), y->load(Order::relaxed)}); });
    });
    ASSERT_TRUE(report.passed()) << report;
    EXPECT_EQ(seen.count({1, 1}), released ? 0u : 1u);
    EXPECT_EQ(seen.count({2, 2}), 1u);
    EXPECT_EQ(seen.count({1, 2}), 1u);
    EXPECT_EQ(seen.count({2, 1}), 1u);
  }
}

// IRIW: two readers may see two independent stores in opposite orders, unless they fence.
TEST(Checker, IndependentReadsOfIndependentWrites) {
  for (const bool fenced : {false, true}) {
    bool opposite = false;
    const Report report = explore([&](Scenario& scenario) {
      auto* x = scenario.make<Atomic>(0u);
      auto* y = scenario.make<Atomic>(0u);
      auto* result = scenario.make<std::array<std::uint32_t, 4>>();
      const auto read = [=](Atomic* first, Atomic* second, std::size_t at) {
        (*result)[at] = first->load(Order::acquire);
        if (fenced) ModelAtomics::fence(Order::seq_cst);
        (*result)[at + 1] = second->load(Order::acquire);
      };
      scenario.thread("writes x", [=] { x->store(1, Order::release); });
      scenario.thread("writes y", [=] { y->store(1, Order::release); });
      scenario.thread("reads x, y", [=] { read(x, y, 0); });
      scenario.thread("reads y, x", [=] { read(y, x, 2); });
      scenario.finally(
          [=, &opposite] { opposite |= *result == std::array<std::uint32_t, 4>{1, 0, 1, 0}; });
    });
    ASSERT_TRUE(report.passed()) << report;
    EXPECT_EQ(opposite, !fenced);
  }
}

TEST(Checker, ReadModifyWritesLoseNothing) {
  const Report report = explore([](Scenario& scenario) {
    auto* sum = scenario.make<Atomic>(0u);
    auto* bits = scenario.make<Atomic>(0u);
    for (std::uint32_t i = 0; i < 3; ++i) {
      scenario.thread("adder", [=] {
        sum->fetch_add(1, Order::relaxed);
        bits->fetch_or(1u << i, Order::relaxed);
      });
    }
    scenario.finally([=] {
      require(sum->load(Order::relaxed) == 3, "an addition was lost");
      require(bits->load(Order::relaxed) == 7, "a bit was lost");
    });
  });
  EXPECT_TRUE(report.passed()) << report;
}

TEST(Checker, LoadThenStoreLosesAnUpdate) {
  const Report report = explore([](Scenario& scenario) {
    auto* sum = scenario.make<Atomic>(0u);
    for (int i = 0; i < 2; ++i) {
      scenario.thread("adder", [=] { sum->store(sum->load(Order::acquire) + 1, Order::release); });
    }
    scenario.finally([=] { require(sum->load(Order::relaxed) == 2, "an addition was lost"); });
  });
  EXPECT_EQ(report.failure, "an addition was lost") << report;
}

TEST(Checker, CompareExchangeHasOneWinner) {
  std::set<std::uint32_t> winners;
  const Report report = explore([&](Scenario& scenario) {
    auto* owner = scenario.make<Atomic>(0u);
    auto* won = scenario.make<std::array<std::uint32_t, 3>>();
    for (std::uint32_t i = 1; i <= 2; ++i) {
      scenario.thread("claimer", [=] {
        std::uint32_t expected = 0;
        (*won)[i] = owner->compare_exchange_strong(expected, i, Order::relaxed);
        if ((*won)[i] == 0) require(expected == 3 - i, "the loser sees the winner");
      });
    }
    scenario.finally([=, &winners] {
      require((*won)[1] + (*won)[2] == 1, "there is one winner");
      winners.insert(owner->load(Order::relaxed));
    });
  });
  EXPECT_TRUE(report.passed()) << report;
  EXPECT_EQ(winners, (std::set<std::uint32_t>{1, 2}));
}

TEST(Checker, WeakCompareExchangeFailsWithoutReason) {
  std::set<bool> results;
  const Report report = explore([&](Scenario& scenario) {
    auto* word = scenario.make<Atomic>(0u);
    scenario.thread("only", [=, &results] {
      std::uint32_t expected = 0;
      results.insert(word->compare_exchange_weak(expected, 1, Order::relaxed, Order::relaxed));
      require(expected == 0, "a failure reports what was read");
      while (!word->compare_exchange_weak(expected, 1, Order::relaxed, Order::relaxed)) {
        if (expected == 1) break;
      }
    });
  });
  EXPECT_TRUE(report.passed()) << report;
  EXPECT_EQ(results, (std::set<bool>{false, true}));
}

// A release sequence goes on through read-modify-writes of others, even relaxed ones, and is broken
// by a plain store.
TEST(Checker, ReleaseSequencesRunThroughReadModifyWrites) {
  for (const bool plain_store : {false, true}) {
    const Report report = explore([=](Scenario& scenario) {
      auto* data = scenario.make<ModelVar<int>>(0);
      auto* word = scenario.make<Atomic>(0u);
      scenario.thread("writer", [=] {
        *data = 42;
        word->store(1, Order::release);
      });
      scenario.thread("relay", [=] {
        if (plain_store) {
          if (word->load(Order::relaxed) == 1) word->store(3, Order::relaxed);
        } else {
          word->fetch_or(2, Order::relaxed);
        }
      });
      scenario.thread("reader", [=] {
        if (word->load(Order::acquire) == 3) require(*data == 42, "the data is old");
      });
    });
    EXPECT_EQ(report.failure.empty(), !plain_store) << report;
  }
}

// Release and acquire are cumulative: what the middleman saw, his readers see.
TEST(Checker, HappensBeforeIsTransitive) {
  const Report report = explore([](Scenario& scenario) {
    auto* data = scenario.make<ModelVar<int>>(0);
    auto* first = scenario.make<Atomic>(0u);
    auto* second = scenario.make<Atomic>(0u);
    scenario.thread("writer", [=] {
      *data = 42;
      first->store(1, Order::release);
    });
    scenario.thread("middleman", [=] {
      if (first->load(Order::acquire) == 1) second->store(1, Order::release);
    });
    scenario.thread("reader", [=] {
      if (second->load(Order::acquire) == 1) require(*data == 42, "the data is old");
    });
  });
  EXPECT_TRUE(report.passed()) << report;
}

TEST(Checker, RacesAreFoundWhateverTheOrderOfExecution) {
  const auto race = [](bool first_writes, bool second_writes) {
    return explore([=](Scenario& scenario) {
      auto* data = scenario.make<ModelVar<int>>(0);
      const auto touch = [=](bool write) {
        if (write) {
          *data = 1;
        } else {
          (void)data->get();
        }
      };
      scenario.thread("first", [=] { touch(first_writes); });
      scenario.thread("second", [=] { touch(second_writes); });
    });
  };
  EXPECT_TRUE(race(false, false).passed());
  EXPECT_FALSE(race(true, false).failure.empty());
  EXPECT_FALSE(race(false, true).failure.empty());
  EXPECT_FALSE(race(true, true).failure.empty());
}

// What a release store does not cover: later accesses of its thread.
TEST(Checker, AReleaseDoesNotCoverWhatComesAfterIt) {
  const Report report = explore([](Scenario& scenario) {
    auto* data = scenario.make<ModelVar<int>>(0);
    auto* flag = scenario.make<Atomic>(0u);
    scenario.thread("writer", [=] {
      flag->store(1, Order::release);
      *data = 42;
    });
    scenario.thread("reader", [=] {
      if (flag->load(Order::acquire) == 1) (void)data->get();
    });
  });
  EXPECT_NE(report.failure.find("data race"), std::string::npos) << report;
}

TEST(Checker, ALostWakeUpIsADeadlock) {
  for (const bool rings : {false, true}) {
    const Report report = explore([=](Scenario& scenario) {
      auto* bell = scenario.make<EventFd>();
      auto* flag = scenario.make<Atomic>(0u);
      scenario.thread("sleeper", [=] {
        if (flag->load(Order::acquire) == 0) bell->poll();
      });
      scenario.thread("waker", [=] {
        flag->store(1, Order::release);
        if (rings) bell->ring();
      });
    });
    EXPECT_EQ(report.failure, rings ? "" : "deadlock: nobody wakes sleeper") << report;
  }
}

TEST(Checker, AnEventFdTakesAllRingsAtOnce) {
  std::set<Pair> seen;
  const Report report = explore([&](Scenario& scenario) {
    auto* bell = scenario.make<EventFd>();
    auto* result = scenario.make<std::array<std::uint32_t, 2>>();
    scenario.thread("ringer", [=] {
      bell->ring();
      bell->ring();
    });
    scenario.thread("sleeper", [=] {
      block_until([=] { return bell->readable(); });
      (*result)[0] = bell->drain();
      (*result)[1] = bell->drain();
    });
    scenario.finally([=, &seen] { seen.insert({(*result)[0], (*result)[1]}); });
  });
  EXPECT_TRUE(report.passed()) << report;
  EXPECT_EQ(seen, (std::set<Pair>{{1, 0}, {1, 1}}));
}

TEST(Checker, AnEventFdPublishesOnlyWhereItIsSaidTo) {
  for (const EventFdOrder order : {EventFdOrder::kNone, EventFdOrder::kSynchronises}) {
    const Report report = explore([=](Scenario& scenario) {
      auto* bell = scenario.make<EventFd>(order);
      auto* data = scenario.make<ModelVar<int>>(0);
      scenario.thread("waker", [=] {
        *data = 42;
        bell->ring();
      });
      scenario.thread("sleeper", [=] {
        bell->wait();
        require(*data == 42, "the data is old");
      });
    });
    EXPECT_EQ(report.failure.empty(), order == EventFdOrder::kSynchronises) << report;
  }
}

TEST(Checker, AnEndlessLoopIsAFailure) {
  const Report report = explore([](Scenario& scenario) {
    auto* flag = scenario.make<Atomic>(0u);
    scenario.thread("spinner", [=] {
      while (flag->load(Order::relaxed) == 0) {
      }
    });
  });
  EXPECT_NE(report.failure.find("loop"), std::string::npos) << report;
}

TEST(Checker, AnUnfinishedSearchDoesNotPass) {
  Options options;
  options.max_executions = 2;
  const Report report = explore(
      [](Scenario& scenario) {
        auto* x = scenario.make<Atomic>(0u);
        for (int i = 0; i < 3; ++i) {
          scenario.thread("adder", [=] { x->fetch_add(1, Order::relaxed); });
        }
      },
      options);
  EXPECT_TRUE(report.failure.empty());
  EXPECT_FALSE(report.passed()) << report;
}

// n threads of one step each that touch one word: n! executions, none missed, none twice.
TEST(Checker, EveryOrderOfConflictingStepsIsExplored) {
  std::set<std::array<std::uint32_t, 3>> orders;
  const Report report = explore([&](Scenario& scenario) {
    auto* ticket = scenario.make<Atomic>(0u);
    auto* drawn = scenario.make<std::array<std::uint32_t, 3>>();
    for (std::size_t i = 0; i < 3; ++i) {
      scenario.thread("drawer", [=] { (*drawn)[i] = ticket->fetch_add(1, Order::relaxed); });
    }
    scenario.finally([=, &orders] { orders.insert(*drawn); });
  });
  EXPECT_TRUE(report.passed()) << report;
  EXPECT_EQ(orders.size(), 6u);
}

TEST(Checker, WeakeningsThatNoScenarioFindsAreNamed) {
  const auto scenario = [](bool looks_at_data) {
    return NamedScenario{"pass", [=](Scenario& s) {
                           auto* data = s.make<ModelVar<int>>(0);
                           auto* flag = s.make<Atomic>(0u);
                           s.thread("writer", [=] {
                             if (looks_at_data) *data = 42;
                             flag->store(1, Order::release);
                           });
                           s.thread("reader", [=] {
                             if (flag->load(Order::acquire) == 1 && looks_at_data) {
                               require(*data == 42, "the data is old");
                             }
                           });
                         }};
  };
  int tried = 0;
  EXPECT_TRUE(surviving_weakenings({scenario(true)}, "checker_test.cpp", &tried).empty());
  EXPECT_EQ(tried, 2);
  EXPECT_EQ(surviving_weakenings({scenario(false)}, "checker_test.cpp").size(), 2u);
  EXPECT_TRUE(surviving_weakenings({scenario(false)}, "other.cpp", &tried).empty());
  EXPECT_EQ(tried, 0);
}

static_assert(sizeof(Atomic) == 4 && sizeof(ModelAtomics::Atomic<std::uint64_t>) == 8);

}  // namespace
}  // namespace stook::model
