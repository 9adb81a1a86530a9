// One parent deals jobs to several workers, some of which "die" with a job in their hands.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "tests/cpp/stress/shared_page.h"
#include "workers/job_ring.h"

namespace stook {
namespace {

constexpr std::uint32_t kWorkers = 3;
constexpr std::uint64_t kCapacity = 8;
constexpr std::uint64_t kJobs = 100'000;

struct JobSlot {
  std::atomic<std::uint64_t> claim;
  Checked contents;
};

struct Shared {
  workers::JobRingWords<> words{};
  JobSlot slots[kCapacity];
  // Of the job in each slot: 0 open, 1 run, 2 its claimer died. Written by workers (release), read
  // and put back by the parent (acquire).
  std::atomic<int> outcome[kCapacity];
  std::atomic<bool> stop;
};

TEST(JobRingStress, EveryJobRunsOnceAlthoughClaimersDie) {
  SharedPage<Shared> shared;
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<std::uint64_t> runs{0};

  std::vector<std::thread> workers;
  for (std::uint32_t worker = 0; worker < kWorkers; ++worker) {
    workers.emplace_back([&, worker] {
      std::uint64_t claimed = 0;
      while (!shared->stop.load(std::memory_order_relaxed)) {
        const auto job = workers::claim_lowest(shared->words, shared->slots, kCapacity, worker,
                                               [](std::uint64_t) { return true; });
        if (!job) {
          std::this_thread::yield();
          continue;
        }
        const JobSlot& slot = shared->slots[*job % kCapacity];
        const std::uint64_t claim = slot.claim.load(std::memory_order_relaxed);
        if (claim != workers::claim_word(*job, workers::claimer_of(worker))) ++wrong;
        if (!slot.contents.holds(*job)) ++wrong;
        const bool dies = ++claimed % 7 == worker;
        if (!dies) ++runs;
        shared->outcome[*job % kCapacity].store(dies ? 2 : 1, std::memory_order_release);
      }
    });
  }

  std::uint64_t produced = 0;
  std::uint64_t deaths = 0;
  for (std::uint64_t finished = 0; finished < kJobs;) {
    while (produced < kJobs && produced < finished + kCapacity) {
      JobSlot& slot = shared->slots[produced % kCapacity];
      slot.contents.write(produced);
      shared->outcome[produced % kCapacity].store(0, std::memory_order_relaxed);
      workers::produce_job(shared->words, slot, produced);
      ++produced;
    }
    // All open jobs are looked at, so that jobs are given free in any order.
    for (std::uint64_t job = finished; job < produced; ++job) {
      if (shared->outcome[job % kCapacity].load(std::memory_order_acquire) != 2) continue;
      ++deaths;
      JobSlot& slot = shared->slots[job % kCapacity];
      slot.contents.write(job);
      shared->outcome[job % kCapacity].store(0, std::memory_order_relaxed);
      workers::unclaim_job(shared->words, slot, job);
    }
    if (shared->outcome[finished % kCapacity].load(std::memory_order_acquire) == 1) {
      ++finished;
    } else {
      std::this_thread::yield();
    }
  }
  shared->stop.store(true, std::memory_order_relaxed);
  for (auto& worker : workers) worker.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(runs, kJobs);
  EXPECT_GT(deaths, 0u);
}

}  // namespace
}  // namespace stook
