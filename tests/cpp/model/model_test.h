// The fixture of the tests that explore many executions.
#pragma once

#include <gtest/gtest.h>

namespace stook::model {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
inline constexpr bool kSanitized =
    __has_feature(thread_sanitizer) || __has_feature(address_sanitizer);
#else
inline constexpr bool kSanitized = false;
#endif

class ModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (kSanitized) {
      GTEST_SKIP()
          << "under a sanitizer: every execution abandons fibers in the middle, whose frames "
             "it never frees, so that a second becomes minutes. The checker's own tests run.";
    }
  }
};

}  // namespace stook::model
