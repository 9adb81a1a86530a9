#include "workers/job_ring.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <optional>
#include <thread>
#include <vector>

namespace stook::workers {
namespace {

constexpr std::uint64_t kCapacity = 8;

struct Slot {
  std::atomic<std::uint64_t> claim;
};

bool always(std::uint64_t) { return true; }

class JobRingTest : public ::testing::Test {
 protected:
  Slot& slot(std::uint64_t job) { return slots_[job & (kCapacity - 1)]; }
  void produce_for(std::uint32_t worker) {
    produce_job(words_, slot(next_), next_, bound_to(worker));
    ++next_;
  }
  std::uint64_t hint() { return words_.hint.load() & ((std::uint64_t{1} << 48) - 1); }
  void produce(std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i, ++next_) produce_job(words_, slot(next_), next_);
  }
  std::optional<std::uint64_t> claim(std::uint32_t worker = 0) {
    return claim_lowest(words_, slots_, kCapacity, worker, always);
  }
  std::uint64_t claimer(std::uint64_t job) {
    const std::uint64_t word = slot(job).claim.load();
    EXPECT_EQ(claim_job(word), job);
    return claim_claimer(word);
  }

  JobRingWords<> words_{};
  Slot slots_[kCapacity]{};
  std::uint64_t next_ = 0;
};

TEST(ClaimWord, KeepsJobAndClaimerApart) {
  const std::uint64_t job = (std::uint64_t{1} << 48) - 1;
  EXPECT_EQ(claim_job(claim_word(job, claimer_of(kMaxWorkers - 1))), job);
  EXPECT_EQ(claim_claimer(claim_word(job, claimer_of(kMaxWorkers - 1))), kMaxWorkers);
  EXPECT_NE(bound_to(kMaxWorkers - 1), kCancelled) << "the last worker is not 'cancelled'";
  EXPECT_LT(claimer_of(kMaxWorkers - 1), bound_to(0)) << "a claimer is not one who may claim";
  EXPECT_NE(claimer_of(0), kUnclaimed);
}

TEST(ClaimWord, TellsWhatNobodyHasClaimed) {
  for (const std::uint32_t worker : {0U, 1U, kMaxWorkers - 1}) {
    EXPECT_TRUE(is_unclaimed(claim_word(7, bound_to(worker))));
    EXPECT_FALSE(is_unclaimed(claim_word(7, claimer_of(worker))));
  }
  EXPECT_TRUE(is_unclaimed(claim_word(7, kUnclaimed)));
  EXPECT_FALSE(is_unclaimed(claim_word(7, kCancelled)));
}

TEST_F(JobRingTest, NothingIsClaimedBeforeItIsProduced) {
  EXPECT_FALSE(claim());
  produce(1);
  EXPECT_EQ(claim(), 0U);
  EXPECT_FALSE(claim());
}

TEST_F(JobRingTest, TheLowestJobIsDealtToWhoeverAsks) {
  produce(3);
  EXPECT_EQ(claim(2), 0U);
  EXPECT_EQ(claim(5), 1U);
  EXPECT_EQ(claim(2), 2U);
  EXPECT_EQ(claimer(0), claimer_of(2));
  EXPECT_EQ(claimer(1), claimer_of(5));
  EXPECT_EQ(claimer(2), claimer_of(2));
}

TEST_F(JobRingTest, SlotsAreReusedForMillionsOfJobs) {
  for (std::uint64_t job = 0; job < 1000000; ++job) {
    produce(1);
    ASSERT_EQ(claim(), job);
  }
}

TEST_F(JobRingTest, AJobThatMayNotRunYetIsNotOvertaken) {
  produce(3);
  std::vector<std::uint64_t> asked;
  const auto refuse = [&](std::uint64_t job) {
    asked.push_back(job);
    return false;
  };
  EXPECT_FALSE(claim_lowest(words_, slots_, kCapacity, 0, refuse));
  EXPECT_EQ(asked, std::vector<std::uint64_t>{0});
  EXPECT_EQ(claimer(0), kUnclaimed);
  EXPECT_EQ(claim(), 0U);
}

TEST_F(JobRingTest, AJobOfADeadWorkerIsDealtAgainBeforeLaterOnes) {
  produce(6);
  for (std::uint64_t job = 0; job < 4; ++job) ASSERT_EQ(claim(1), job);
  unclaim_job(words_, slot(1), 1);
  EXPECT_EQ(claimer(1), kUnclaimed);
  EXPECT_EQ(claim(2), 1U);
  EXPECT_EQ(claim(2), 4U) << "jobs in between are still the other worker's";
  EXPECT_EQ(claimer(2), claimer_of(1));
}

TEST_F(JobRingTest, SeveralJobsAreGivenFreeInAnyOrder) {
  produce(6);
  for (std::uint64_t job = 0; job < 6; ++job) ASSERT_EQ(claim(1), job);
  for (const std::uint64_t job : {5U, 0U, 3U}) unclaim_job(words_, slot(job), job);
  EXPECT_EQ(claim(2), 0U);
  EXPECT_EQ(claim(2), 3U);
  EXPECT_EQ(claim(2), 5U);
  EXPECT_FALSE(claim(2));
}

TEST_F(JobRingTest, AJobForOneWorkerIsPassedOverByOthers) {
  produce_for(1);
  produce(1);
  produce_for(1);
  produce_for(0);
  EXPECT_EQ(claim(0), 1U);
  EXPECT_EQ(claim(0), 3U);
  EXPECT_FALSE(claim(0));
  EXPECT_FALSE(claim(2));
  EXPECT_EQ(hint(), 0U) << "past a job that nobody has claimed";
  EXPECT_EQ(claim(1), 0U);
  EXPECT_EQ(claimer(0), claimer_of(1));
  EXPECT_EQ(claim(1), 2U);
  EXPECT_FALSE(claim(1));
  EXPECT_EQ(hint(), 3U) << "job 3 was claimed while job 2 was not";
}

TEST_F(JobRingTest, OnlyJobsThatAreForTheClaimerAreAskedFor) {
  produce_for(1);
  produce_for(0);
  produce(1);
  std::vector<std::uint64_t> asked;
  const auto refuse = [&](std::uint64_t job) {
    asked.push_back(job);
    return false;
  };
  EXPECT_FALSE(claim_lowest(words_, slots_, kCapacity, 0, refuse));
  EXPECT_FALSE(claim_lowest(words_, slots_, kCapacity, 2, refuse));
  EXPECT_EQ(asked, (std::vector<std::uint64_t>{1, 2}));
}

TEST_F(JobRingTest, AJobOfADeadWorkerWaitsForItsSuccessor) {
  produce_for(1);
  produce(2);
  ASSERT_EQ(claim(1), 0U);
  unclaim_job(words_, slot(0), 0, bound_to(1));
  EXPECT_EQ(claim(0), 1U);
  EXPECT_EQ(claim(1), 0U);
  EXPECT_EQ(claim(1), 2U);
}

TEST_F(JobRingTest, AJobForOneWorkerCanBeCancelled) {
  produce_for(1);
  produce_for(1);
  EXPECT_TRUE(cancel_job(slot(0), 0));
  EXPECT_FALSE(cancel_job(slot(0), 0)) << "cancelled twice";
  EXPECT_FALSE(cancel_job(slot(1), kCapacity + 1)) << "another job of that slot";
  EXPECT_EQ(claim(1), 1U);
  EXPECT_FALSE(cancel_job(slot(1), 1));
}

TEST_F(JobRingTest, JobsForOneWorkerUseTheirSlotsAgainAndAgain) {
  for (std::uint64_t job = 0; job < 300000; job += 3) {
    produce_for(2);
    produce_for(0);
    produce_for(1);
    ASSERT_EQ(claim(0), job + 1);
    ASSERT_EQ(claim(1), job + 2);
    ASSERT_EQ(claim(2), job);
  }
}

TEST_F(JobRingTest, ACancelledJobIsRunByNobody) {
  produce(3);
  EXPECT_TRUE(cancel_job(slot(0), 0));
  EXPECT_TRUE(cancel_job(slot(1), 1));
  EXPECT_FALSE(cancel_job(slot(1), 1)) << "cancelled twice";
  EXPECT_EQ(claim(), 2U);
  EXPECT_FALSE(claim());
}

TEST_F(JobRingTest, AClaimedJobCannotBeCancelled) {
  produce(1);
  ASSERT_EQ(claim(3), 0U);
  EXPECT_FALSE(cancel_job(slot(0), 0));
  EXPECT_EQ(claimer(0), claimer_of(3));
}

TEST_F(JobRingTest, ALateCancelDoesNotHitTheSlotsNextJob) {
  produce(1);
  ASSERT_EQ(claim(), 0U);
  for (std::uint64_t job = 1; job < kCapacity; ++job) {
    produce(1);
    claim();
  }
  produce(1);  // job 8, in the slot of job 0
  EXPECT_FALSE(cancel_job(slot(0), 0));
  EXPECT_EQ(claim(), kCapacity);
}

TEST_F(JobRingTest, ANumberIsLeftOutWhileAnOlderJobHasItsSlot) {
  produce(1);
  ASSERT_EQ(claim(3), 0U);  // runs on and on
  for (int lap = 0; lap < 5; ++lap) {
    if (next_ % kCapacity == 0) ++next_;  // as the manager leaves it out
    produce(kCapacity - 1);
    for (std::uint64_t i = 1; i < kCapacity; ++i) {
      const auto job = claim();
      ASSERT_TRUE(job);
      EXPECT_NE(*job % kCapacity, 0U);
    }
    EXPECT_FALSE(claim());
  }
  EXPECT_EQ(claimer(0), claimer_of(3)) << "the record of who has it is untouched";
}

TEST_F(JobRingTest, EveryJobIsClaimedOnceByManyThreads) {
  constexpr std::uint64_t kJobs = 20000;
  constexpr std::uint32_t kThreads = 3;
  std::vector<std::vector<std::uint64_t>> claimed(kThreads);
  std::atomic<std::uint64_t> total{0};
  std::vector<std::thread> threads;
  for (std::uint32_t worker = 0; worker < kThreads; ++worker) {
    threads.emplace_back([&, worker] {
      while (total.load() < kJobs) {
        if (const auto job = claim(worker)) {
          claimed[worker].push_back(*job);
          total.fetch_add(1);
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  for (std::uint64_t job = 0; job < kJobs; ++job) {
    // The window: a slot's earlier job is done.
    while (job >= kCapacity && total.load() + kCapacity <= job) std::this_thread::yield();
    while (job >= kCapacity && slot(job).claim.load() == claim_word(job - kCapacity, kUnclaimed)) {
      std::this_thread::yield();
    }
    produce(1);
  }
  for (auto& thread : threads) thread.join();
  std::vector<std::uint64_t> all;
  for (const auto& jobs : claimed) {
    EXPECT_TRUE(std::is_sorted(jobs.begin(), jobs.end()));
    all.insert(all.end(), jobs.begin(), jobs.end());
  }
  std::sort(all.begin(), all.end());
  ASSERT_EQ(all.size(), kJobs);
  for (std::uint64_t job = 0; job < kJobs; ++job) ASSERT_EQ(all[job], job);
}

}  // namespace
}  // namespace stook::workers
