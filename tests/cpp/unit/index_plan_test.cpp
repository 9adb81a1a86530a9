#include "workers/index_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace stook::workers {
namespace {

std::vector<std::uint64_t> order(std::uint64_t length, std::uint64_t seed, std::uint64_t epoch) {
  const IndexPermutation permutation(length, seed, epoch);
  std::vector<std::uint64_t> indices;
  for (std::uint64_t place = 0; place < length; ++place) indices.push_back(permutation(place));
  return indices;
}

struct Copy {
  std::uint64_t epoch;
  std::uint64_t position;
  std::vector<std::uint64_t> indices;
  bool operator==(const Copy&) const = default;
};

std::vector<Copy> all_jobs(const IndexPlan::Options& options) {
  IndexPlan plan(options);
  std::vector<Copy> jobs;
  IndexPlan::Job job;
  while (plan.next(job)) {
    jobs.push_back({job.epoch, job.position, {job.indices.begin(), job.indices.end()}});
  }
  EXPECT_FALSE(plan.next(job)) << "a plan that is over stays over";
  return jobs;
}

// Pearson's statistic of counts that should all be equal.
double chi_squared(const std::vector<int>& counts) {
  double total = 0;
  for (const int count : counts) total += count;
  const double expected = total / static_cast<double>(counts.size());
  double sum = 0;
  for (const int count : counts) sum += (count - expected) * (count - expected) / expected;
  return sum;
}

TEST(IndexPermutation, GivesEveryIndexOnce) {
  std::vector<std::uint64_t> lengths;
  for (std::uint64_t length = 0; length <= 70; ++length) lengths.push_back(length);
  // Around powers of two, and around the size at which the number of rounds changes.
  for (const std::uint64_t power : {128U, 1024U, 4096U, 8192U}) {
    lengths.insert(lengths.end(), {power - 1, power, power + 1});
  }
  for (const std::uint64_t length : lengths) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      std::vector<std::uint64_t> indices = order(length, seed, seed + 1);
      std::sort(indices.begin(), indices.end());
      for (std::uint64_t index = 0; index < length; ++index) {
        ASSERT_EQ(indices[index], index) << "length " << length << ", seed " << seed;
      }
    }
  }
}

TEST(IndexPermutation, StaysInRangeAndDoesNotRepeatInLongSources) {
  for (const std::uint64_t length :
       {std::uint64_t{1000000000000}, (std::uint64_t{1} << 61) + 1, IndexPlan::kMaxLength}) {
    const IndexPermutation permutation(length, 3, 4);
    std::set<std::uint64_t> seen;
    for (std::uint64_t place = 0; place < 2000; ++place) {
      seen.insert(permutation(place));
      seen.insert(permutation(length - 1 - place));
    }
    EXPECT_EQ(seen.size(), 4000u);
    EXPECT_LT(*seen.rbegin(), length);
    // Not in one corner of the range either.
    EXPECT_LT(*seen.begin(), length / 100);
    EXPECT_GT(*seen.rbegin(), length - length / 100);
  }
}

// Recorded runs are repeated by their seed: these orders must never change.
TEST(IndexPermutation, GivesTheOrdersItAlwaysGave) {
  using Indices = std::vector<std::uint64_t>;
  EXPECT_EQ(order(10, 0, 0), (Indices{3, 1, 2, 4, 8, 9, 0, 5, 6, 7}));
  EXPECT_EQ(order(10, 0, 1), (Indices{2, 5, 0, 7, 9, 8, 4, 1, 3, 6}));
  const IndexPermutation medium(100000, 0, 0);
  EXPECT_EQ((Indices{medium(0), medium(1), medium(2), medium(3)}),
            (Indices{88028, 55358, 93899, 18496}));
  const IndexPermutation large(1000000000000, 42, 7);
  EXPECT_EQ((Indices{large(0), large(1), large(2), large(3)}),
            (Indices{905082773744, 394348885328, 866196814155, 878224635860}));
}

TEST(IndexPermutation, DiffersBySeedAndByEpoch) {
  std::set<std::vector<std::uint64_t>> orders;
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    for (std::uint64_t epoch = 0; epoch < 30; ++epoch) orders.insert(order(50, seed, epoch));
  }
  EXPECT_EQ(orders.size(), 900u);
}

// The seeds are fixed, so a failure is a change of the function, never chance. The bounds are the
// statistic's 99.9 % points.
TEST(IndexPermutation, GivesEveryOrderOfAFewElementsEquallyOften) {
  struct Case {
    std::uint64_t length;
    std::size_t orders;
    double bound;
  };
  for (const Case& each : {Case{2, 2, 10.8}, Case{3, 6, 20.5}, Case{4, 24, 49.7}}) {
    std::map<std::vector<std::uint64_t>, int> counted;
    for (std::uint64_t seed = 0; seed < 24000; ++seed) ++counted[order(each.length, seed, 0)];
    ASSERT_EQ(counted.size(), each.orders);
    std::vector<int> counts;
    for (const auto& [indices, count] : counted) counts.push_back(count);
    EXPECT_LT(chi_squared(counts), each.bound) << "length " << each.length;
  }
}

TEST(IndexPermutation, PutsFirstAndLastElementAnywhere) {
  for (const std::uint64_t length : {20u, 100u, 5000u, 100000u}) {
    for (const std::uint64_t place : {std::uint64_t{0}, length - 1}) {
      std::vector<int> by_seed(20), by_epoch(20);
      for (std::uint64_t key = 0; key < 20000; ++key) {
        ++by_seed[IndexPermutation(length, key, 0)(place) * 20 / length];
        ++by_epoch[IndexPermutation(length, 0, key)(place) * 20 / length];
      }
      EXPECT_LT(chi_squared(by_seed), 43.8) << "length " << length << ", place " << place;
      EXPECT_LT(chi_squared(by_epoch), 43.8) << "length " << length << ", place " << place;
    }
  }
}

TEST(IndexPermutation, LeavesNeighboursApart) {
  // In a random order of many, about two of them follow their predecessor.
  int neighbours = 0;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<std::uint64_t> indices = order(10000, seed, 0);
    for (std::size_t place = 1; place < indices.size(); ++place) {
      const std::uint64_t a = indices[place - 1];
      const std::uint64_t b = indices[place];
      neighbours += a + 1 == b || b + 1 == a ? 1 : 0;
    }
  }
  EXPECT_GT(neighbours, 10);
  EXPECT_LT(neighbours, 80);
}

TEST(IndexPlan, GoesThroughIndicesInOrder) {
  EXPECT_EQ(all_jobs({.length = 3, .num_epochs = 2}),
            (std::vector<Copy>{
                {0, 0, {0}}, {0, 1, {1}}, {0, 2, {2}}, {1, 0, {0}}, {1, 1, {1}}, {1, 2, {2}}}));
}

TEST(IndexPlan, EndsAnEpochWithAShorterBatch) {
  EXPECT_EQ(all_jobs({.length = 5, .batch_size = 2, .first_epoch = 7, .num_epochs = 2}),
            (std::vector<Copy>{{7, 0, {0, 1}},
                               {7, 1, {2, 3}},
                               {7, 2, {4}},
                               {8, 0, {0, 1}},
                               {8, 1, {2, 3}},
                               {8, 2, {4}}}));
}

TEST(IndexPlan, LeavesTheShorterBatchOut) {
  EXPECT_EQ(all_jobs({.length = 5, .batch_size = 2, .drop_remainder = true, .num_epochs = 1}),
            (std::vector<Copy>{{0, 0, {0, 1}}, {0, 1, {2, 3}}}));
  EXPECT_EQ(all_jobs({.length = 4, .batch_size = 2, .drop_remainder = true, .num_epochs = 1}),
            (std::vector<Copy>{{0, 0, {0, 1}}, {0, 1, {2, 3}}}));
}

TEST(IndexPlan, TakesABatchLargerThanTheSource) {
  EXPECT_EQ(all_jobs({.length = 2, .batch_size = std::uint64_t{1} << 60, .num_epochs = 1}),
            (std::vector<Copy>{{0, 0, {0, 1}}}));
}

TEST(IndexPlan, CountsTheJobsOfAnEpoch) {
  EXPECT_EQ(IndexPlan({.length = 7}).jobs_per_epoch(), 7u);
  EXPECT_EQ(IndexPlan({.length = 7, .batch_size = 3}).jobs_per_epoch(), 3u);
  EXPECT_EQ(IndexPlan({.length = 6, .batch_size = 3}).jobs_per_epoch(), 2u);
  EXPECT_EQ(IndexPlan({.length = 7, .batch_size = 3, .drop_remainder = true}).jobs_per_epoch(), 2u);
  EXPECT_EQ(IndexPlan({.length = 2, .batch_size = 3, .drop_remainder = true}).jobs_per_epoch(), 0u);
  EXPECT_EQ(IndexPlan({.length = 0}).jobs_per_epoch(), 0u);
}

TEST(IndexPlan, IsOverAtOnceWithoutJobsAlsoWhenEndless) {
  EXPECT_TRUE(all_jobs({.length = 0}).empty());
  EXPECT_TRUE(all_jobs({.length = 2, .batch_size = 3, .drop_remainder = true}).empty());
  EXPECT_TRUE(all_jobs({.length = 5, .num_epochs = 0}).empty());
}

TEST(IndexPlan, ShufflesEachEpochAsThePermutationSays) {
  std::vector<std::uint64_t> seen;
  for (const Copy& job : all_jobs(
           {.length = 11, .batch_size = 4, .shuffle_seed = 5, .first_epoch = 2, .num_epochs = 2})) {
    seen.insert(seen.end(), job.indices.begin(), job.indices.end());
  }
  std::vector<std::uint64_t> expected = order(11, 5, 2);
  const std::vector<std::uint64_t> second = order(11, 5, 3);
  expected.insert(expected.end(), second.begin(), second.end());
  EXPECT_EQ(seen, expected);
}

TEST(IndexPlan, GoesOnForEverWithoutANumberOfEpochs) {
  IndexPlan plan({.length = 3, .shuffle_seed = 1});
  IndexPlan::Job job;
  for (int count = 0; count < 3000; ++count) ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(job.epoch, 999u);
  EXPECT_EQ(job.position, 2u);
}

std::vector<std::uint64_t> all_indices(const std::vector<Copy>& jobs) {
  std::vector<std::uint64_t> indices;
  for (const Copy& job : jobs) {
    indices.insert(indices.end(), job.indices.begin(), job.indices.end());
  }
  return indices;
}

TEST(IndexPlan, TakesEveryCountThPlaceOfTheShuffledEpoch) {
  const std::vector<std::uint64_t> whole = order(11, 5, 2);
  for (std::uint64_t index = 0; index < 4; ++index) {
    std::vector<std::uint64_t> expected;
    for (std::uint64_t place = index; place < 11; place += 4) expected.push_back(whole[place]);
    EXPECT_EQ(all_indices(all_jobs({.length = 11,
                                    .batch_size = 2,
                                    .shuffle_seed = 5,
                                    .first_epoch = 2,
                                    .num_epochs = 1,
                                    .shard_index = index,
                                    .shard_count = 4})),
              expected);
  }
}

TEST(IndexPlan, CountsTheJobsOfAShard) {
  const auto jobs = [](std::uint64_t index, bool drop_remainder) {
    return IndexPlan({.length = 11,
                      .batch_size = 2,
                      .drop_remainder = drop_remainder,
                      .shard_index = index,
                      .shard_count = 4})
        .jobs_per_epoch();
  };
  // 3, 3, 3 and 2 items.
  EXPECT_EQ(jobs(0, false), 2u);
  EXPECT_EQ(jobs(2, false), 2u);
  EXPECT_EQ(jobs(3, false), 1u);
  EXPECT_EQ(jobs(0, true), 1u);
  EXPECT_EQ(jobs(3, true), 1u);
}

TEST(IndexPlan, HasNoJobsForAShardBeyondTheSource) {
  EXPECT_TRUE(all_jobs({.length = 3, .shard_index = 3, .shard_count = 5}).empty());
  EXPECT_TRUE(
      all_jobs({.length = 3, .shard_index = 4, .shard_count = std::uint64_t{1} << 62}).empty());
  EXPECT_EQ(all_jobs({.length = 3, .num_epochs = 2, .shard_index = 2, .shard_count = 5}),
            (std::vector<Copy>{{0, 0, {2}}, {1, 0, {2}}}));
}

// Sums and products of the largest numbers must not wrap round.
TEST(IndexPlan, ShardsTheLongestSource) {
  constexpr std::uint64_t kMost = IndexPlan::kMaxLength;
  EXPECT_EQ(
      IndexPlan({.length = kMost, .shard_index = kMost - 1, .shard_count = kMost}).jobs_per_epoch(),
      1u);
  constexpr std::uint64_t kItems = (kMost - 4) / 7;  // ceil((2**62 - 6) / 7)
  IndexPlan last({.length = kMost,
                  .batch_size = 3,
                  .num_epochs = 1,
                  .shard_index = 6,
                  .shard_count = 7,
                  .first_position = (kItems - 1) / 3});
  IndexPlan::Job job;
  ASSERT_TRUE(last.next(job));
  ASSERT_EQ(job.indices.size(), (kItems - 1) % 3 + 1);
  EXPECT_EQ(job.indices.back(), kMost - 5);
  EXPECT_FALSE(last.next(job));

  IndexPlan late({.length = kMost, .batch_size = ~std::uint64_t{0}, .first_position = 1});
  EXPECT_EQ(late.jobs_in_first_epoch(), 1u);
  IndexPlan placed({.length = kMost,
                    .num_epochs = 1,
                    .shard_index = kMost - 1,
                    .shard_count = kMost,
                    .first_place = kMost});
  EXPECT_EQ(placed.jobs_in_first_epoch(), 0u);
}

TEST(IndexPlan, GoesOnInTheMiddleOfAnEpoch) {
  const IndexPlan::Options whole{
      .length = 7, .batch_size = 3, .shuffle_seed = 1, .first_epoch = 4, .num_epochs = 2};
  const std::vector<Copy> jobs = all_jobs(whole);
  ASSERT_EQ(jobs.size(), 6u);
  for (std::uint64_t position = 0; position <= 3; ++position) {
    IndexPlan::Options rest = whole;
    rest.first_position = position;
    EXPECT_EQ(all_jobs(rest),
              std::vector<Copy>(jobs.begin() + static_cast<std::ptrdiff_t>(position), jobs.end()));
  }
}

TEST(IndexPlan, LeavesPlacesOfTheFirstEpochOut) {
  // Places 5 and on, of which shard 1 of 3 takes 6, 9; then whole epochs.
  EXPECT_EQ(all_jobs({.length = 11,
                      .batch_size = 2,
                      .num_epochs = 2,
                      .shard_index = 1,
                      .shard_count = 3,
                      .first_place = 5}),
            (std::vector<Copy>{{0, 0, {6, 9}}, {1, 0, {1, 4}}, {1, 1, {7, 10}}}));
  // None left: the second epoch comes nevertheless.
  EXPECT_EQ(all_jobs({.length = 3, .num_epochs = 2, .first_place = 3}),
            (std::vector<Copy>{{1, 0, {0}}, {1, 1, {1}}, {1, 2, {2}}}));
  EXPECT_EQ(all_jobs({.length = 4, .num_epochs = 1, .first_position = 1, .first_place = 1}),
            (std::vector<Copy>{{0, 1, {2}}, {0, 2, {3}}}));
}

TEST(IndexPlan, LeavesSkippedJobsOutButCountsThem) {
  const IndexPlan::Options options{
      .length = 3, .num_epochs = 2, .first_position = 1, .skip = {0, 2, 3, 99}};
  EXPECT_EQ(all_jobs(options), (std::vector<Copy>{{0, 2, {2}}, {1, 2, {2}}}));
  IndexPlan plan(options);
  IndexPlan::Job job;
  ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(job.ordinal, 1u);
  ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(job.ordinal, 4u);
}

TEST(IndexPlan, TellsWhereAJobBegins) {
  IndexPlan plan({.length = 20,
                  .batch_size = 2,
                  .shuffle_seed = 3,
                  .shard_index = 1,
                  .shard_count = 3,
                  .first_place = 4});
  const IndexPermutation permutation(20, 3, 0);
  IndexPlan::Job job;
  for (const std::uint64_t place : {5u, 11u, 17u}) {
    ASSERT_TRUE(plan.next(job));
    EXPECT_EQ(job.place, place);
    EXPECT_EQ(job.indices.front(), permutation(place));
  }
  ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(job.place, 1u);
}

TEST(IndexPlan, IsRewoundToAnyItem) {
  IndexPlan plan({.length = 7, .batch_size = 2, .num_epochs = 2, .fill = true});
  IndexPlan::Job job;
  for (int count = 0; count < 5; ++count) ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(job.epoch, 1u);
  // The first batch took three items.
  plan.rewind(0, 1, 3, 1);
  ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(std::tuple(job.epoch, job.position, job.ordinal, job.place),
            std::tuple(0u, 1u, 1u, 3u));
  EXPECT_EQ(std::vector<std::uint64_t>(job.indices.begin(), job.indices.end()),
            (std::vector<std::uint64_t>{3, 4}));
  // And the second all that were left: an epoch of two.
  plan.rewind(0, 2, 7, 2);
  ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(std::tuple(job.epoch, job.position, job.ordinal), std::tuple(1u, 0u, 2u));
  // The end of the last epoch is the end, and one can go back from it.
  plan.rewind(1, 1, 7, 3);
  EXPECT_FALSE(plan.next(job));
  EXPECT_FALSE(plan.next(job));
  plan.rewind(1, 3, 6, 5);
  ASSERT_TRUE(plan.next(job));
  EXPECT_EQ(std::vector<std::uint64_t>(job.indices.begin(), job.indices.end()),
            (std::vector<std::uint64_t>{6}));
  EXPECT_EQ(job.position, 3u);
  EXPECT_FALSE(plan.next(job));
}

TEST(ItemsFrom, GoOnToTheEndOfTheEpoch) {
  IndexPlan plan({.length = 20,
                  .batch_size = 2,
                  .shuffle_seed = 3,
                  .first_epoch = 1,
                  .shard_index = 1,
                  .shard_count = 3,
                  .first_place = 4,
                  .fill = true});
  IndexPlan::Job job;
  ASSERT_TRUE(plan.next(job));
  const ItemsFrom items = plan.items_from(job);  // places 5, 8, 11, 14, 17
  const std::vector<std::uint64_t> whole = order(20, 3, 1);
  for (std::uint64_t number = 0; number < 5; ++number) {
    EXPECT_EQ(items.at(number), whole[5 + 3 * number]);
  }
  EXPECT_FALSE(items.at(5).has_value());
  EXPECT_FALSE(items.at(~std::uint64_t{0}).has_value());
  const ItemsFrom all{.epoch = 0, .place = 0, .step = 1, .length = 2, .shuffled = 0, .seed = 0};
  EXPECT_EQ(all.at(1), 1u);
  EXPECT_FALSE(all.at(2).has_value());
}

TEST(IndexPlan, BeginsAtAnyItemToBeFilled) {
  EXPECT_EQ(all_jobs({.length = 7,
                      .batch_size = 2,
                      .drop_remainder = true,
                      .num_epochs = 1,
                      .first_position = 1,
                      .fill = true,
                      .first_item = 4}),
            (std::vector<Copy>{{0, 1, {4, 5}}}));
  EXPECT_EQ(all_jobs({.length = 4,
                      .batch_size = 2,
                      .num_epochs = 2,
                      .first_position = 5,
                      .fill = true,
                      .first_item = 4}),
            (std::vector<Copy>{{1, 0, {0, 1}}, {1, 1, {2, 3}}}));
}

TEST(IndexPlan, RefusesWhatItCannotPlan) {
  const std::vector<IndexPlan::Options> refused = {
      {.length = 5, .shard_index = 2, .shard_count = 2},
      {.length = 5, .shard_count = 0},
      {.length = 5, .shard_count = IndexPlan::kMaxLength + 1},
      {.length = 5, .first_position = 6},
      {.length = 5, .batch_size = 2, .drop_remainder = true, .first_position = 3},
      {.length = 5, .first_place = 6},
      {.length = 5, .skip = {2, 1}},
      {.length = 5, .skip = {2, 2}},
      {.length = 5, .fill = true},
      {.length = 5, .batch_size = 2, .skip = {1}, .fill = true},
      {.length = 5, .batch_size = 2, .first_item = 1},
      {.length = 5, .batch_size = 2, .fill = true, .first_item = 6},
  };
  for (const IndexPlan::Options& options : refused) {
    EXPECT_THROW(IndexPlan{options}, std::invalid_argument) << &options - refused.data();
  }
  EXPECT_NO_THROW(IndexPlan({.length = 5, .first_position = 5}));
  EXPECT_NO_THROW(
      IndexPlan({.length = 5, .batch_size = 2, .drop_remainder = true, .first_position = 2}));
  EXPECT_THROW(IndexPlan({.length = 5}).rewind(0, 0, 0, 0), std::invalid_argument);
  IndexPlan late({.length = 5, .batch_size = 2, .first_epoch = 3, .fill = true});
  EXPECT_THROW(late.rewind(2, 0, 0, 0), std::invalid_argument);
}

// A batch that cannot be had is still the next one, and says so again.
TEST(IndexPlan, RefusesABatchThatIsTooLarge) {
  constexpr std::uint64_t kWhole = IndexPlan::kMaxLength;
  IndexPlan plan({.length = kWhole, .batch_size = kWhole});
  IndexPlan::Job job;
  for (int turn = 0; turn < 2; ++turn) {
    try {
      plan.next(job);
      FAIL() << "no error";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(std::to_string(kWhole)), std::string::npos);
    }
  }
  // The size alone is no batch.
  IndexPlan small({.length = 3, .batch_size = kWhole});
  ASSERT_TRUE(small.next(job));
  EXPECT_EQ(job.indices.size(), 3U);
}

TEST(IndexPlan, RefusesASourceThatIsTooLong) {
  EXPECT_NO_THROW(IndexPlan({.length = IndexPlan::kMaxLength}));
  EXPECT_THROW(IndexPlan({.length = IndexPlan::kMaxLength + 1}), std::invalid_argument);
}

}  // namespace
}  // namespace stook::workers
