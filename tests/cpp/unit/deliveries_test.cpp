#include "workers/deliveries.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <set>
#include <vector>

namespace stook::workers {
namespace {

using Ordinals = std::vector<std::uint64_t>;

Ordinals ahead(const Deliveries& deliveries) { return deliveries.ahead(); }

TEST(Deliveries, NeedNothingButACountWhileTheOrderIsKept) {
  Deliveries deliveries;
  for (std::uint64_t job = 0; job < 1000; ++job) {
    EXPECT_EQ(deliveries.lowest(), job);
    deliveries.add(job);
    ASSERT_TRUE(deliveries.ahead().empty());
  }
  EXPECT_EQ(deliveries.lowest(), 1000u);
}

TEST(Deliveries, RememberWhatIsAheadUntilTheLowestComes) {
  Deliveries deliveries;
  deliveries.add(2);
  deliveries.add(1);
  deliveries.add(4);
  EXPECT_EQ(deliveries.lowest(), 0u);
  EXPECT_EQ(ahead(deliveries), (Ordinals{1, 2, 4}));
  deliveries.add(0);
  EXPECT_EQ(deliveries.lowest(), 3u);
  EXPECT_EQ(ahead(deliveries), (Ordinals{4}));
  deliveries.add(3);
  EXPECT_EQ(deliveries.lowest(), 5u);
  EXPECT_TRUE(ahead(deliveries).empty());
}

TEST(Deliveries, CountSkippedJobsAsDelivered) {
  Deliveries deliveries({0, 1, 4});
  EXPECT_EQ(deliveries.lowest(), 2u);
  EXPECT_EQ(ahead(deliveries), (Ordinals{4}));
  deliveries.add(1);  // the second one dealt: ordinal 3
  EXPECT_EQ(ahead(deliveries), (Ordinals{3, 4}));
  deliveries.add(0);
  EXPECT_EQ(deliveries.lowest(), 5u);
}

// The ring of bits grows, and its places come round again and again.
TEST(Deliveries, MayBeAsFarAheadAsTheyLike) {
  for (const std::uint64_t distance : {1U, 63U, 64U, 65U, 127U, 128U, 1000U}) {
    Deliveries deliveries;
    for (std::uint64_t first = 0; first < 5000; first += distance + 1) {
      for (std::uint64_t job = first + distance; job > first; --job) deliveries.add(job);
      ASSERT_EQ(deliveries.lowest(), first);
      const Ordinals ordinals = ahead(deliveries);
      ASSERT_EQ(ordinals.size(), distance);
      EXPECT_EQ(ordinals.front(), first + 1);
      EXPECT_EQ(ordinals.back(), first + distance);
      deliveries.add(first);
      ASSERT_EQ(deliveries.lowest(), first + distance + 1);
      ASSERT_TRUE(ahead(deliveries).empty());
    }
  }
}

TEST(Deliveries, MayLeaveOutWhatLiesFarApart) {
  const std::uint64_t far = std::uint64_t{1} << 40;
  Deliveries deliveries({2, far, far + 1});
  deliveries.add(2);
  EXPECT_EQ(ahead(deliveries), (Ordinals{2, 3, far, far + 1}));
  deliveries.add(0);
  deliveries.add(1);
  EXPECT_EQ(deliveries.lowest(), 4u);
  EXPECT_EQ(ahead(deliveries), (Ordinals{far, far + 1}));
}

// Against a plain set, for any order of delivery and any jobs skipped.
TEST(Deliveries, AreThoseOfASet) {
  std::mt19937 random(1);  // NOLINT: the same cases every time
  for (int round = 0; round < 300; ++round) {
    const std::uint64_t jobs = random() % (round % 10 == 0 ? 400 : 30);
    Ordinals skip;
    Ordinals dealt;
    for (std::uint64_t job = 0; job < jobs; ++job)
      (random() % 3 == 0 ? skip : dealt).push_back(job);
    Deliveries deliveries(skip);
    std::set<std::uint64_t> delivered(skip.begin(), skip.end());
    Ordinals order(dealt.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (std::size_t next = 0;; ++next) {
      std::uint64_t lowest = 0;
      while (delivered.count(lowest) != 0) ++lowest;
      ASSERT_EQ(deliveries.lowest(), lowest);
      ASSERT_EQ(ahead(deliveries), Ordinals(delivered.upper_bound(lowest), delivered.end()));
      if (next == order.size()) break;
      delivered.insert(dealt[order[next]]);
      deliveries.add(order[next]);
    }
  }
}

}  // namespace
}  // namespace stook::workers
