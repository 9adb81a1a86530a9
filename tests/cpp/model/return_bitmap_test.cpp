// Every execution of the return bitmap with two words and up to three threads.
#include "shm/return_bitmap.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/cpp/model/checker.h"
#include "tests/cpp/model/model_test.h"

namespace stook::model {
namespace {

using Bitmap = shm::ReturnBitmapWords<ModelAtomics, 2>;
constexpr std::uint32_t kBlockCount = Bitmap::kBlocks;

struct Shared {
  Bitmap bitmap{};
  std::array<ModelVar<int>, kBlockCount> bytes;  // of each block
  std::array<int, kBlockCount> taken{};
};

// The owner takes what came back and writes into it, as it does when it allocates the block again.
void harvest(Shared* shared) {
  shm::harvest_blocks(shared->bitmap, kBlockCount, [=](std::uint32_t block) {
    require(block < kBlockCount, "there is no such block");
    ++shared->taken[block];
    shared->bytes[block] = 2;
  });
}

void give_back(Shared* shared, std::uint32_t block) {
  require(shared->bytes[block] == 1, "the block was reused under its holder");
  shm::return_block(shared->bitmap, block);
}

// Each thread of the holder returns its blocks while the owner harvests.
NamedScenario returns(const std::string& name, std::vector<std::vector<std::uint32_t>> holders,
                      int harvests) {
  return {name, [=](Scenario& scenario) {
            auto* shared = scenario.make<Shared>();
            for (const auto& blocks : holders) {
              for (const std::uint32_t block : blocks) shared->bytes[block] = 1;
              scenario.thread("holder", [=] {
                for (const std::uint32_t block : blocks) give_back(shared, block);
              });
            }
            scenario.thread("owner", [=] {
              for (int i = 0; i < harvests; ++i) harvest(shared);
            });
            scenario.finally([=] {
              harvest(shared);
              require(shared->bitmap.summary[0].load(std::memory_order_relaxed) == 0,
                      "the owner looks at words that hold nothing");
              for (const auto& blocks : holders) {
                for (const std::uint32_t block : blocks) {
                  require(shared->taken[block] == 1, "a block came back never or twice");
                }
              }
            });
          }};
}

// A block makes the round twice: returned, harvested, handed over again, returned again.
NamedScenario recycles() {
  return {"one block twice", [](Scenario& scenario) {
            using Flag = ModelAtomics::Atomic<std::uint32_t>;
            auto* shared = scenario.make<Shared>();
            auto* handed_over = scenario.make<Flag>(0u);
            shared->bytes[3] = 1;
            scenario.thread("holder", [=] {
              give_back(shared, 3);
              if (handed_over->load(std::memory_order_acquire) == 1) give_back(shared, 3);
            });
            scenario.thread("owner", [=] {
              harvest(shared);
              if (shared->taken[3] == 1) {
                shared->bytes[3] = 1;
                handed_over->store(1, std::memory_order_release);
              }
              harvest(shared);
            });
            scenario.finally([=] { harvest(shared); });
          }};
}

class ReturnBitmapModel : public ModelTest {};

std::vector<NamedScenario> scenarios() {
  return {
      returns("one word, one holder", {{5, 6}}, 3),
      returns("two words, one holder", {{63, 64}}, 3),
      returns("one word, two holders", {{0}, {63}}, 2),
      returns("two words, two holders", {{1, 100}, {2}}, 2),
      recycles(),
  };
}

TEST_F(ReturnBitmapModel, EveryBlockComesBackOnceAndUnread) {
  for (const NamedScenario& scenario : scenarios()) {
    const Report report = explore(scenario.build);
    EXPECT_TRUE(report.passed()) << scenario.name << ": " << report;
  }
}

// The summary's pair survives, and must stay in the code nevertheless. Losing a block through it
// takes a load-buffering execution: the owner's exchange of the word, which follows its exchange of
// the summary, is ordered before the fetch_or of the word, which the fetch_or of the summary
// follows. ISO C++ allows that cycle where the summary is relaxed; this checker, RC11 and (by the
// address and control dependencies) today's processors do not show it.
TEST_F(ReturnBitmapModel, EveryMemoryOrderIsNeededOrForbidsLoadBuffering) {
  int tried = 0;
  EXPECT_EQ(surviving_weakenings(scenarios(), "shm/return_bitmap.h", &tried),
            (std::vector<std::string>{"return.summary: fetch_or release -> relaxed",
                                      "return.summary: exchange acquire -> relaxed"}));
  EXPECT_EQ(tried, 4);
}

}  // namespace
}  // namespace stook::model
