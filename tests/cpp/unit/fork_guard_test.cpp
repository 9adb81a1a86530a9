#include "shm/fork_guard.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "tests/cpp/unit/child_process.h"

namespace stook::shm {
namespace {

int hook_calls = 0;

TEST(ForkGuard, EveryChildIsAGenerationOfItsOwn) {
  const std::uint64_t here = fork_generation();
  EXPECT_EQ(exit_code_of_child([here] {
              if (fork_generation() != here + 1) return 1;
              return exit_code_of_child([here] { return fork_generation() == here + 2 ? 0 : 2; });
            }),
            0);
  EXPECT_EQ(fork_generation(), here) << "the parent's own generation moved";
}

TEST(ForkGuard, TheHookRunsInTheChildAlone) {
  hook_calls = 0;
  set_child_after_fork([] { ++hook_calls; });
  EXPECT_EQ(exit_code_of_child([] { return hook_calls; }), 1);
  EXPECT_EQ(hook_calls, 0);
  set_child_after_fork(nullptr);
  EXPECT_EQ(exit_code_of_child([] { return hook_calls; }), 0);
}

}  // namespace
}  // namespace stook::shm
