// Processes that make, attach and release named segments are killed at any instant; whatever is
// left must be gone after one sweep, and nothing that a living process uses may go with it.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <deque>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "shm/error.h"
#include "shm/reclaimer.h"
#include "shm/segment.h"
#include "tests/cpp/unit/segment_files.h"

namespace stook::shm {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kKills = 200;  // starting a child costs ten times as much
#else
constexpr int kKills = 1000;
#endif

class SegmentKill : public ::testing::Test {
 protected:
  SegmentKill() {
    has_private_shared_memory();
    sweep_leftover_segments();
  }
  ~SegmentKill() override {
    leave_segments();
    sweep_leftover_segments();
  }

  // A random instant within the first millisecond of a child's life, in which it goes through
  // dozens of its steps. No outcome depends on how long this really takes.
  void pass_some_time() {
    const auto until = std::chrono::steady_clock::now() +
                       std::chrono::microseconds(std::uniform_int_distribution(0, 1000)(random_));
    while (std::chrono::steady_clock::now() < until) {
    }
  }

  // What is there but what `mine` owns.
  static std::set<std::string> left(const std::string& mine) {
    std::set<std::string> names = segment_files();
    for (const std::string& name : files_of_owner(mine)) names.erase(name);
    return names;
  }

  std::mt19937 random_{20240229};
};

// Makes segments, some to be unlinked, releases them in some order, with and without threads.
[[noreturn]] void own(const Child::Say& say, bool announce) {
  configure_reclaimer(1, 4);
  std::deque<Segment::Pointer> alive;
  for (std::uint64_t i = 0;; ++i) {
    alive.push_back(Segment::create(64));
    alive.back()->data()[0] = std::byte{0x5A};
    if (i % 2 == 0) alive.back()->unlink_on_release();
    if (announce && i == 0) say(alive.front()->name());
    if (announce && i < 8) continue;  // the first ones stay for those who attach
    if (alive.size() > 12) alive.erase(alive.begin() + (announce ? 8 : 0));
  }
}

// Attaches and releases `name` as often as it can; ends when it is gone.
int use(const std::string& name) {
  for (std::uint64_t i = 0;; ++i) {
    try {
      const Segment::Pointer segment = Segment::attach(name);
      if (segment->data()[0] != std::byte{0x5A}) return 1;
    } catch (const Error& error) {
      return error.system_errno() == ENOENT ? 0 : 2;
    }
  }
}

TEST_F(SegmentKill, NothingOfAKilledOwnerIsLeftAndNothingOfALivingOne) {
  const Segment::Pointer mine = Segment::create(64);
  mine->unlink_on_release();
  mine->data()[0] = std::byte{0x5A};
  for (int i = 0; i < kKills; ++i) {
    Child owner([](const auto& say, const auto&) {
      say("starts");
      own(say, false);
      return 0;
    });
    owner.hear();
    pass_some_time();
    owner.kill();
    sweep_leftover_segments();
    ASSERT_EQ(left(mine->name()), std::set<std::string>{}) << "after kill " << i;
    ASSERT_EQ(Segment::attach(mine->name())->data()[0], std::byte{0x5A}) << "after kill " << i;
  }
}

TEST_F(SegmentKill, AKilledAttacherTakesNothingAlong) {
  const Segment::Pointer mine = Segment::create(64);
  mine->unlink_on_release();
  mine->data()[0] = std::byte{0x5A};
  // An owner in another process: for it the attachers' locks decide, for `mine` our own.
  Child owner([](const auto& say, const auto& wait) {
    const Segment::Pointer segment = Segment::create(64);
    segment->data()[0] = std::byte{0x5A};
    say(segment->name());
    wait();
    return 0;  // ends without leaving: as good as killed
  });
  const std::string theirs = owner.hear();
  for (int i = 0; i < kKills; ++i) {
    const std::string& name = i % 2 == 0 ? mine->name() : theirs;
    Child attacher([&](const auto& say, const auto&) {
      say("starts");
      return use(name);
    });
    attacher.hear();
    pass_some_time();
    attacher.kill();
    sweep_leftover_segments();
    ASSERT_TRUE(segment_exists(mine->name())) << "after kill " << i;
    ASSERT_TRUE(segment_exists(theirs)) << "after kill " << i;
  }
  owner.go_on();
  owner.wait();
  sweep_leftover_segments();
  EXPECT_EQ(left(mine->name()), std::set<std::string>{});
}

TEST_F(SegmentKill, NothingOfAKilledPairIsLeftAndWhatTheSecondUsesStaysUntilItGoes) {
  const Segment::Pointer mine = Segment::create(64);
  mine->unlink_on_release();
  for (int i = 0; i < kKills; ++i) {
    Child owner([](const auto& say, const auto&) {
      own(say, true);
      return 0;
    });
    const std::string name = owner.hear();
    Child attacher([&](const auto& say, const auto&) {
      const Segment::Pointer kept = Segment::attach(name);
      say("holds it");
      return use(name);
    });
    const bool held = attacher.hear() == "holds it";
    pass_some_time();
    switch (i % 3) {
      case 0:
        owner.kill();
        sweep_leftover_segments();
        ASSERT_TRUE(held);
        ASSERT_TRUE(segment_exists(name)) << "kill " << i << ": swept under a living attacher";
        pass_some_time();
        attacher.kill();
        break;
      case 1:
        attacher.kill();
        sweep_leftover_segments();
        ASSERT_TRUE(segment_exists(name)) << "kill " << i << ": swept under a living owner";
        pass_some_time();
        owner.kill();
        break;
      default:
        ::kill(owner.pid(), SIGKILL);
        ::kill(attacher.pid(), SIGKILL);
        owner.wait();
        attacher.wait();
    }
    sweep_leftover_segments();
    ASSERT_EQ(left(mine->name()), std::set<std::string>{}) << "after kill " << i;
  }
}

TEST_F(SegmentKill, AKilledSweepIsFinishedByTheNext) {
  for (int i = 0; i < kKills / 4; ++i) {
    Child owner([](const auto& say, const auto& wait) {
      std::vector<Segment::Pointer> segments;
      for (int n = 0; n < 50; ++n) segments.push_back(Segment::create(64));
      for (std::size_t n = 0; n < 50; n += 2) segments[n]->unlink_on_release();
      say("ready");
      wait();
      return 0;
    });
    owner.hear();
    owner.kill();
    Child sweeper([](const auto& say, const auto&) {
      say("starts");
      sweep_leftover_segments();
      return 0;
    });
    sweeper.hear();
    pass_some_time();
    sweeper.kill();
    sweep_leftover_segments();
    ASSERT_EQ(segment_files(), std::set<std::string>{}) << "after kill " << i;
  }
}

}  // namespace
}  // namespace stook::shm
