// Every execution of the job ring with up to two workers, at capacities 1 and 2.
#include "workers/job_ring.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/cpp/model/checker.h"
#include "tests/cpp/model/model_test.h"

namespace stook::model {
namespace {

using Counter = ModelAtomics::Atomic<std::uint64_t>;
using Words = workers::JobRingWords<ModelAtomics>;

struct Slot {
  Counter claim;
  ModelVar<std::uint64_t> contents;
};

// Whom each job is for.
using Bonds = std::array<std::uint32_t, 3>;
constexpr std::uint32_t kAnybody = 9;

struct Shared {
  Words words{};
  Bonds only = {kAnybody, kAnybody, kAnybody};  // not changed while threads run
  Slot slots[2];
  Counter done[4] = {};  // stands in for the result ring
};

constexpr auto kAnyJob = [](std::uint64_t) { return true; };

std::uint64_t contents_of(std::uint64_t job) { return 100 + job; }

std::uint64_t claimants(const Shared* shared, std::uint64_t job) {
  const std::uint32_t only = shared->only[job];
  return only == kAnybody ? workers::kUnclaimed : workers::bound_to(only);
}

std::string name_of(const Bonds& only) {
  std::string text;
  for (std::size_t job = 0; job < 2; ++job) {
    text += only[job] == kAnybody ? "anybody " : "worker " + std::to_string(only[job]) + " ";
  }
  return text;
}

void produce(Shared* shared, std::uint64_t capacity, std::uint64_t job) {
  Slot& slot = shared->slots[job & (capacity - 1)];
  slot.contents = contents_of(job);
  workers::produce_job(shared->words, slot, job, claimants(shared, job));
}

// A claimed job is read and finished; anybody's second claim of it fails the execution.
bool claim_and_run(Shared* shared, std::uint64_t capacity, std::uint32_t worker) {
  const std::optional<std::uint64_t> job =
      workers::claim_lowest(shared->words, shared->slots, capacity, worker, kAnyJob);
  if (!job) return false;
  Slot& slot = shared->slots[*job & (capacity - 1)];
  require(shared->only[*job] == kAnybody || shared->only[*job] == worker,
          "a worker claims a job that is for another");
  require(slot.contents == contents_of(*job), "the worker reads another job's contents");
  require(workers::claim_claimer(slot.claim.load(std::memory_order_relaxed)) ==
              workers::claimer_of(worker),
          "the slot names another worker");
  shared->done[*job].fetch_add(1, std::memory_order_release);
  return true;
}

void require_each_done_once(Shared* shared, std::uint64_t jobs) {
  for (const std::uint32_t worker : {7U, 1U, 0U}) {
    while (claim_and_run(shared, 2, worker)) {
    }
  }
  for (std::uint64_t job = 0; job < jobs; ++job) {
    require(shared->done[job].load(std::memory_order_acquire) == 1, "a job ran never or twice");
  }
}

// The parent makes jobs while two workers claim.
NamedScenario deal() {
  return {"deal", [](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            scenario.thread("parent", [=] {
              produce(shared, 2, 0);
              produce(shared, 2, 1);
            });
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] {
                claim_and_run(shared, 2, worker);
                if (worker == 0) claim_and_run(shared, 2, worker);
              });
            }
            scenario.finally([=] { require_each_done_once(shared, 2); });
          }};
}

// Both jobs exist already: two workers race for each.
NamedScenario race() {
  return {"race", [](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            produce(shared, 2, 0);
            produce(shared, 2, 1);
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] {
                claim_and_run(shared, 2, worker);
                claim_and_run(shared, 2, worker);
              });
            }
            scenario.finally([=] { require_each_done_once(shared, 2); });
          }};
}

// As many jobs as workers: whoever loses the race for the first job gets the second.
NamedScenario race_once() {
  return {"race once", [](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            produce(shared, 2, 0);
            produce(shared, 2, 1);
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] {
                require(claim_and_run(shared, 2, worker),
                        "a worker goes away although a job is free");
              });
            }
          }};
}

// One slot serves jobs 0, 1 and 2; a slow worker may hold an old hint.
NamedScenario reuse() {
  return {"reuse", [](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            produce(shared, 1, 0);
            scenario.thread("parent", [=] {
              for (std::uint64_t job = 1; job < 3; ++job) {
                if (shared->done[job - 1].load(std::memory_order_acquire) == 0) return;
                produce(shared, 1, job);
              }
            });
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] {
                claim_and_run(shared, 1, worker);
                claim_and_run(shared, 1, worker);
              });
            }
          }};
}

// Worker 5 has claimed `claimed` jobs and died; the last claim, if `early`, before it advanced the
// hint. The parent writes the `freed` jobs' contents anew and gives them free while others claim.
struct Death {
  std::uint64_t claimed;
  bool early;
  std::vector<std::uint64_t> freed;
};

NamedScenario give_free(const Death& death) {
  return {"give free " + std::to_string(death.freed.front()), [=](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            produce(shared, 2, 0);
            produce(shared, 2, 1);
            for (std::uint64_t i = 0; i < death.claimed; ++i) {
              const std::uint64_t hint = shared->words.hint.load();
              workers::claim_lowest(shared->words, shared->slots, 2, 5, kAnyJob);
              if (death.early && i + 1 == death.claimed) shared->words.hint.store(hint);
            }
            scenario.thread("parent", [=] {
              for (const std::uint64_t job : death.freed) {
                Slot& slot = shared->slots[job];
                slot.contents = contents_of(job);
                workers::unclaim_job(shared->words, slot, job);
              }
            });
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] { claim_and_run(shared, 2, worker); });
            }
            scenario.finally([=] { require_each_done_once(shared, 2); });
          }};
}

// As before, and meanwhile the parent makes another job.
NamedScenario give_free_and_produce() {
  return {"give free and produce", [=](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            produce(shared, 2, 0);
            workers::claim_lowest(shared->words, shared->slots, 2, 5, kAnyJob);
            scenario.thread("parent", [=] {
              shared->slots[0].contents = contents_of(0);
              workers::unclaim_job(shared->words, shared->slots[0], 0);
              produce(shared, 2, 1);
            });
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] { claim_and_run(shared, 2, worker); });
            }
            scenario.finally([=] { require_each_done_once(shared, 2); });
          }};
}

// ------------------------------------------------------------------ jobs for one worker

// Jobs 0 and 1 are made while both workers claim; each waits for the worker in `only`.
NamedScenario deal_bound(const Bonds& only) {
  return {"deal to " + name_of(only), [=](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            shared->only = only;
            scenario.thread("parent", [=] {
              produce(shared, 2, 0);
              produce(shared, 2, 1);
            });
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] {
                claim_and_run(shared, 2, worker);
                if (worker == 0) claim_and_run(shared, 2, worker);
              });
            }
            scenario.finally([=] { require_each_done_once(shared, 2); });
          }};
}

// Both exist already, and each worker gets the one that is for it, whoever comes first.
NamedScenario each_has_one(const Bonds& only) {
  return {"each has one of " + name_of(only), [=](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            shared->only = only;
            produce(shared, 2, 0);
            produce(shared, 2, 1);
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] {
                require(claim_and_run(shared, 2, worker),
                        "a worker goes away although a job waits for it");
              });
            }
          }};
}

// One slot serves jobs for anybody, for worker 1 and for worker 0; a slow worker may see an earlier
// job's word.
NamedScenario reuse_bound() {
  return {"reuse for another", [](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            shared->only = {kAnybody, 1, 0};
            produce(shared, 1, 0);
            scenario.thread("parent", [=] {
              for (std::uint64_t job = 1; job < 3; ++job) {
                if (shared->done[job - 1].load(std::memory_order_acquire) == 0) return;
                produce(shared, 1, job);
              }
            });
            for (std::uint32_t worker = 0; worker < 2; ++worker) {
              scenario.thread("worker", [=] {
                claim_and_run(shared, 1, worker);
                claim_and_run(shared, 1, worker);
              });
            }
          }};
}

// Worker 0 has died of job 0, which is its own: its successor gets it, and meanwhile nobody else.
NamedScenario give_free_bound(bool early, std::uint32_t second) {
  const char* const name = early                ? "give free to one, early"
                           : second == kAnybody ? "give free to one, before one for anybody"
                                                : "give free to one";
  return {name, [=](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            shared->only = {0, second};
            produce(shared, 2, 0);
            produce(shared, 2, 1);
            const std::uint64_t hint = shared->words.hint.load();
            workers::claim_lowest(shared->words, shared->slots, 2, 0, kAnyJob);
            if (early) shared->words.hint.store(hint);
            scenario.thread("parent", [=] {
              shared->slots[0].contents = contents_of(0);
              workers::unclaim_job(shared->words, shared->slots[0], 0, claimants(shared, 0));
            });
            scenario.thread("other", [=] { claim_and_run(shared, 2, 1); });
            scenario.thread("successor", [=] { claim_and_run(shared, 2, 0); });
            scenario.finally([=] { require_each_done_once(shared, 2); });
          }};
}

std::vector<NamedScenario> bound_scenarios() {
  return {deal_bound({1, 0}),
          deal_bound({1, kAnybody}),
          deal_bound({kAnybody, 1}),
          deal_bound({1, 1}),
          each_has_one({1, 0}),

          each_has_one({1, kAnybody}),
          reuse_bound(),
          give_free_bound(false, 1),
          give_free_bound(true, 1),
          give_free_bound(false, kAnybody)};
}

class JobRingModel : public ModelTest {};

std::vector<NamedScenario> scenarios() {
  return {deal(),
          race(),
          race_once(),
          reuse(),
          give_free({1, false, {0}}),
          give_free({1, true, {0}}),
          give_free({2, false, {0, 1}}),
          give_free({2, true, {1, 0}}),
          give_free_and_produce()};
}

TEST_F(JobRingModel, EveryJobIsClaimedOnceWithItsContents) {
  for (const NamedScenario& scenario : scenarios()) {
    const Report report = explore(scenario.build);
    EXPECT_TRUE(report.passed()) << scenario.name << ": " << report;
  }
}

TEST_F(JobRingModel, AJobForOneWorkerIsClaimedByThatOneAlone) {
  for (const NamedScenario& scenario : bound_scenarios()) {
    const Report report = explore(scenario.build);
    EXPECT_TRUE(report.passed()) << scenario.name << ": " << report;
  }
}

// The parent takes a job back while a worker claims it: one of them has it.
class JobRingModelCancel : public JobRingModel, public ::testing::WithParamInterface<Bonds> {};

TEST_P(JobRingModelCancel, CancelAndClaimExcludeEachOther) {
  const Report report = explore([](Scenario& scenario) {
    auto* shared = scenario.make<Shared>();
    shared->only = GetParam();
    auto* cancelled = scenario.make<std::array<bool, 1>>();
    produce(shared, 2, 0);
    produce(shared, 2, 1);
    scenario.thread("parent", [=] { (*cancelled)[0] = workers::cancel_job(shared->slots[0], 0); });
    for (std::uint32_t worker = 0; worker < 2; ++worker) {
      scenario.thread("worker", [=] { claim_and_run(shared, 2, worker); });
    }
    scenario.finally([=] {
      for (const std::uint32_t worker : {7U, 1U, 0U}) {
        while (claim_and_run(shared, 2, worker)) {
        }
      }
      const std::uint64_t ran = shared->done[0].load(std::memory_order_acquire);
      require(ran + (*cancelled)[0] == 1, "the job was run and cancelled, or neither");
      require(shared->done[1].load(std::memory_order_acquire) == 1, "the other job ran once");
    });
  });
  EXPECT_TRUE(report.passed()) << report;
}

INSTANTIATE_TEST_SUITE_P(ForAnybodyAndForOne, JobRingModelCancel,
                         ::testing::Values(Bonds{kAnybody, kAnybody}, Bonds{1, kAnybody},
                                           Bonds{0, 1}));

// The lowest job may not run yet: no later one overtakes it.
TEST_F(JobRingModel, AJobThatMayNotRunIsNotOvertaken) {
  const Report report = explore([](Scenario& scenario) {
    auto* shared = scenario.make<Shared>();
    for (std::uint32_t worker = 0; worker < 2; ++worker) {
      scenario.thread("worker", [=] {
        const auto job =
            workers::claim_lowest(shared->words, shared->slots, 2, worker,
                                  [](std::uint64_t candidate) { return candidate != 0; });
        require(!job, "a later job overtook one that may not run");
      });
    }
    scenario.thread("parent", [=] {
      produce(shared, 2, 0);
      produce(shared, 2, 1);
    });
  });
  EXPECT_TRUE(report.passed()) << report;
}

TEST_F(JobRingModel, EveryMemoryOrderIsNeeded) {
  int tried = 0;
  EXPECT_EQ(surviving_weakenings(scenarios(), "workers/job_ring.h", &tried),
            std::vector<std::string>{});
  EXPECT_EQ(tried, 6);
}

// Each of them also for jobs that are for one worker.
TEST_F(JobRingModel, EveryMemoryOrderIsNeededForJobsForOneWorker) {
  int tried = 0;
  EXPECT_EQ(surviving_weakenings(bound_scenarios(), "workers/job_ring.h", &tried),
            std::vector<std::string>{});
  EXPECT_EQ(tried, 6);
}

}  // namespace
}  // namespace stook::model
