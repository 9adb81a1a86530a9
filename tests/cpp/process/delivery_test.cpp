// Elements of healthy workers: all of them, once, whole, in order where that was asked.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

using workers::OutcomeKind;

struct Setting {
  std::uint32_t workers;
  std::uint32_t buffer;
  bool ordered;
};

class Delivery : public ProcessTest, public ::testing::WithParamInterface<Setting> {
 protected:
  PoolOptions options() const {
    PoolOptions options;
    options.manager.worker_count = GetParam().workers;
    options.manager.per_worker_buffer_size = GetParam().buffer;
    return options;
  }
};

TEST_P(Delivery, EveryElementArrivesOnce) {
  constexpr std::uint64_t kCount = 3000;
  Pool pool(options());
  Ledger ledger(kCount, GetParam().ordered);
  std::mt19937 random(1);
  pool.run(
      0, kCount, GetParam().ordered,
      [&](std::uint64_t) {
        const auto kind = random() % 8;
        Order order;
        order.act = kind == 0 ? Act::kMakeEnvelope : kind == 1 ? Act::kMakeCopied : Act::kMake;
        order.bytes = 8 * (random() % 2000);
        order.filler = random() % 16 == 0 ? 5000U : static_cast<std::uint32_t>(random() % 100);
        order.spin = random() % 2000;
        return order;
      },
      [&](const Element& element) { ledger.take(element); });
  ledger.check();
  EXPECT_EQ(pool.manager().stats().outstanding_bytes, 0U) << "released bytes were not counted";
  EXPECT_EQ(pool.blackboard().started.load(), kCount) << "a job ran more than once";
  EXPECT_EQ(pool.blackboard().wrong.load(), 0U) << "a payload was cut";
  EXPECT_EQ(pool.manager().stats().restarts, 0U);
}

TEST_P(Delivery, ErrorsComeInTheirPlaces) {
  Pool pool(options());
  std::set<std::uint64_t> errors;
  std::uint64_t elements = 0;
  pool.run(
      0, 200, GetParam().ordered,
      [](std::uint64_t position) {
        Order order;
        if (position % 7 == 3) order.act = Act::kRaise;
        return order;
      },
      [&](const Element& element) {
        if (element.position() % 7 != 3) {
          EXPECT_EQ(element.fault(), "");
          ++elements;
          return;
        }
        EXPECT_EQ(element.kind(), OutcomeKind::kError);
        EXPECT_EQ(element.text(), "error of job " + std::to_string(element.position()));
        errors.insert(element.position());
      });
  EXPECT_EQ(errors.size() + elements, 200U);
}

TEST_P(Delivery, SkipsComeInTheirPlaces) {
  Pool pool(options());
  std::uint64_t next = 0;
  std::set<std::uint64_t> skipped;
  pool.run(
      0, 200, GetParam().ordered,
      [](std::uint64_t position) {
        Order order;
        if (position % 7 == 3) order.act = Act::kSkip;
        return order;
      },
      [&](const Element& element) {
        if (GetParam().ordered) {
          EXPECT_EQ(element.position(), next++);
        }
        const workers::Outcome& outcome = element.outcome();
        if (element.position() % 7 != 3) {
          EXPECT_EQ(element.fault(), "");
          EXPECT_EQ(outcome.failed, 0U);
          EXPECT_EQ(outcome.consumed, 0U);
          return;
        }
        EXPECT_EQ(element.kind(), OutcomeKind::kSkipped);
        EXPECT_EQ(outcome.failed, element.position());
        EXPECT_EQ(outcome.consumed, element.position() + 1);
        skipped.insert(element.position());
      });
  EXPECT_EQ(skipped.size(), 29U);
}

INSTANTIATE_TEST_SUITE_P(Workers, Delivery,
                         ::testing::Values(Setting{1, 0, true}, Setting{1, 8, false},
                                           Setting{2, 1, true}, Setting{2, 64, true},
                                           Setting{2, 8, false}, Setting{5, 2, true},
                                           Setting{5, 0, false}),
                         [](const auto& setting) {
                           return std::to_string(setting.param.workers) + "Buffer" +
                                  std::to_string(setting.param.buffer) +
                                  (setting.param.ordered ? "Ordered" : "Unordered");
                         });

class DeliveryOnce : public ProcessTest {};

TEST_F(DeliveryOnce, ASlowElementDoesNotHoldUpTheOthers) {
  Pool pool;
  // The first element waits until the others of the window are here.
  std::vector<std::uint64_t> order;
  for (std::uint64_t position = 0; position < pool.manager().window(); ++position) {
    Order job;
    if (position == 0) job.act = Act::kWaitAtGate;
    pool.produce(0, position, job);
  }
  for (std::uint64_t i = 1; i < pool.manager().window(); ++i) {
    const auto element = pool.next(false);
    ASSERT_TRUE(element);
    order.push_back(element->position());
  }
  EXPECT_EQ(std::count(order.begin(), order.end(), 0U), 0);
  pool.open_gate(1);
  EXPECT_EQ(pool.next(false)->position(), 0U);
  EXPECT_FALSE(pool.next(false));
}

TEST_F(DeliveryOnce, BlocksAreUsedAgain) {
  PoolOptions options;
  options.manager.worker_count = 1;
  Pool pool(options);
  std::set<std::uint64_t> offsets;
  pool.run(
      0, 2000, true, [](std::uint64_t) { return Order{Act::kMake, 0, 200000, 0}; },
      [&](const Element& element) { offsets.insert(element.outcome().blocks[0].offset); });
  EXPECT_LE(offsets.size(), pool.manager().window() + 1);
}

TEST_F(DeliveryOnce, ElementsStayWholeWhileTheyAreKept) {
  Pool pool;
  std::vector<Element> kept;
  pool.run(
      0, 1500, true, [](std::uint64_t) { return Order{Act::kMake, 0, 8000, 0}; },
      [&](Element element) {
        if (element.position() % 3 == 0) kept.push_back(std::move(element));
      });
  pool.manager().close();
  for (const Element& element : kept) ASSERT_EQ(element.fault(), "");
  EXPECT_EQ(kept.size(), 500U);
}

TEST_F(DeliveryOnce, APoolRunsManyPasses) {
  Pool pool;
  for (std::uint64_t epoch = 0; epoch < 50; ++epoch) {
    Ledger ledger(40, epoch % 2 == 0);
    pool.run(
        epoch, 40, epoch % 2 == 0, [](std::uint64_t) { return Order{}; },
        [&](const Element& element) {
          EXPECT_EQ(element.epoch(), epoch);
          ledger.take(element);
        });
    ledger.check();
  }
}

}  // namespace
}  // namespace stook
