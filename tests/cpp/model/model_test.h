// The fixture of the tests that explore many executions.
#pragma once

#include <gtest/gtest.h>

namespace stook::model {

class ModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP()
        << "under ThreadSanitizer: abandoned fibers exhaust its shadow call stack, and the "
           "checker is one thread, so there is nothing for it to find";
#endif
  }
};

}  // namespace stook::model
