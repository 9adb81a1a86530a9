#include "shm/segment_owner.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "shm/file_descriptor.h"
#include "tests/cpp/unit/child_process.h"
#include "tests/cpp/unit/segment_files.h"

namespace stook::shm {
namespace {

// A segment as far as this file is concerned: a file of the right name.
std::string make_segment() {
  const std::string name = new_segment_name();
  make_file(name, 4096);
  return name;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for (int fd = 0; fd < 256; ++fd) count += ::fcntl(fd, F_GETFD) != -1 ? 1U : 0U;
  return count;
}

class SegmentOwner : public ::testing::Test {
 protected:
  SegmentOwner() {
    has_private_shared_memory();
    sweep_leftover_segments();
  }
  ~SegmentOwner() override {
    leave_segments();
    for (const std::string& name : made_) ::unlink(("/dev/shm/" + name).c_str());
    sweep_leftover_segments();
  }
  std::string remember(std::string name) {
    made_.insert(name);
    return name;
  }
  // A process that has made a segment and was killed.
  std::string leftover() {
    Child child([](const auto& say, const auto& wait) {
      say(make_segment());
      wait();
      return 0;
    });
    const std::string name = remember(child.hear());
    child.kill();
    return name;
  }

  std::set<std::string> made_;
};

TEST_F(SegmentOwner, NamesAreShortDifferentAndOfOneOwner) {
  std::set<std::string> names;
  for (int i = 0; i < 3000; ++i) names.insert(new_segment_name());
  EXPECT_EQ(names.size(), 3000U);
  const std::string token(segment_token(*names.begin()));
  EXPECT_EQ(token.size(), 13U);
  for (const std::string& name : names) {
    EXPECT_EQ(segment_token(name), token);
    EXPECT_LE(name.size(), 30U);
  }
  EXPECT_EQ(files_of_owner(*names.begin()), std::set<std::string>{"stook_" + token});
}

TEST_F(SegmentOwner, TheMarkerIsTheUsersAloneWhateverTheUmask) {
  EXPECT_EQ(exit_code_of_child([] {
              ::umask(0777);
              const std::string marker = "/dev/shm/" + marker_of(new_segment_name());
              struct stat status{};
              const bool right = ::stat(marker.c_str(), &status) == 0 &&
                                 (status.st_mode & 07777) == 0600 && S_ISREG(status.st_mode);
              leave_segments();
              return right ? 0 : 1;
            }),
            0);
}

TEST_F(SegmentOwner, OnlyNamesOfOursHaveAToken) {
  EXPECT_EQ(segment_token("stook_0123456789abc_0"), "0123456789abc");
  EXPECT_EQ(segment_token("stook_0123456789abc_zz9"), "0123456789abc");
  for (const char* name :
       {"", "stook_", "stook_0123456789abc", "stook_0123456789abc_", "stook_0123456789ab_0",
        "stook_0123456789abcd_0", "stook_0123456789abC_0", "stook_0123456789ab-_0",
        "stook_0123456789abc_0_1", "stook_0123456789abc_A", "stook_0123456789abc-0",
        "Stook_0123456789abc_0", "/stook_0123456789abc_0", "stook_0123456789abc_0123456789a",
        "psm_0123456789abc_0"}) {
    EXPECT_EQ(segment_token(name), "") << name;
  }
}

TEST_F(SegmentOwner, WhatALivingProcessHasIsNotSwept) {
  const std::string mine = remember(make_segment());
  Child other([](const auto& say, const auto& wait) {
    say(make_segment());
    wait();
    leave_segments();
    return 0;
  });
  const std::string theirs = remember(other.hear());
  EXPECT_TRUE(sweeps(0));
  EXPECT_TRUE(segment_exists(mine));
  EXPECT_TRUE(segment_exists(theirs));
  // Nor by another process, for which none of them is its own.
  EXPECT_EQ(exit_code_of_child([] { return sweeps(0) ? 0 : 1; }), 0);
  EXPECT_TRUE(segment_exists(mine));
  EXPECT_TRUE(segment_exists(marker_of(mine)));
  EXPECT_TRUE(segment_exists(theirs));
}

TEST_F(SegmentOwner, WhatAKilledProcessHadIsSwept) {
  const std::string name = leftover();
  ASSERT_TRUE(segment_exists(name));
  EXPECT_TRUE(sweeps(1));
  EXPECT_TRUE(files_of_owner(name).empty());
}

TEST_F(SegmentOwner, WhatAProcessKeptWhenItLeftIsNotSwept) {
  Child child([](const auto& say, const auto&) {
    say(make_segment());
    leave_segments();
    return 0;
  });
  const std::string name = remember(child.hear());
  EXPECT_EQ(child.wait(), 0);
  EXPECT_TRUE(sweeps(0));
  EXPECT_EQ(files_of_owner(name), std::set<std::string>{name});
}

TEST_F(SegmentOwner, AHoldKeepsWhatAKilledProcessHadAndItsEndSweepsIt) {
  const std::size_t descriptors = open_descriptors();
  std::string name;
  {
    Child child([](const auto& say, const auto& wait) {
      say(make_segment());
      wait();
      return 0;
    });
    name = remember(child.hear());
    OwnerHold first(name);
    OwnerHold second(name);
    EXPECT_EQ(open_descriptors(), descriptors + 3) << "one per owner, and two pipes of Child";
    child.kill();
    EXPECT_TRUE(sweeps(0));
    EXPECT_TRUE(segment_exists(name));
    first = OwnerHold();
    EXPECT_TRUE(sweeps(0)) << "the second hold counts as well";
    OwnerHold moved(std::move(second));
    EXPECT_TRUE(sweeps(0));
    EXPECT_TRUE(segment_exists(name));
  }
  EXPECT_TRUE(files_of_owner(name).empty()) << "the last hold of a dead owner is its sweep";
  EXPECT_EQ(open_descriptors(), descriptors);
}

TEST_F(SegmentOwner, TheEndOfAHoldTouchesNothingOfALivingOwner) {
  Child child([](const auto& say, const auto& wait) {
    say(make_segment());
    wait();
    leave_segments();
    return 0;
  });
  const std::string name = remember(child.hear());
  {
    const OwnerHold hold(name);
  }
  EXPECT_TRUE(segment_exists(name));
  EXPECT_TRUE(segment_exists(marker_of(name)));
  {
    const OwnerHold again(name);
  }
  child.go_on();
  EXPECT_EQ(child.wait(), 0);
  EXPECT_TRUE(segment_exists(name));
}

TEST_F(SegmentOwner, ThisProcessNeedsNoDescriptorForItsOwn) {
  const std::string name = remember(make_segment());
  const std::size_t descriptors = open_descriptors();
  const OwnerHold own(name);
  const OwnerHold foreign("psm_1234");
  const OwnerHold gone("stook_0123456789abc_0");
  EXPECT_EQ(open_descriptors(), descriptors);
}

TEST_F(SegmentOwner, AnInheritedHoldIsTheParentsToEnd) {
  Child child([](const auto& say, const auto& wait) {
    say(make_segment());
    wait();
    return 0;
  });
  const std::string name = remember(child.hear());
  {
    OwnerHold hold(name);
    child.kill();
    EXPECT_EQ(exit_code_of_child([&] {
                OwnerHold mine(std::move(hold));
                mine = OwnerHold();
                sweep_leftover_segments();
                return segment_exists(name) ? 0 : 1;
              }),
              0);
    EXPECT_TRUE(sweeps(0));
    EXPECT_TRUE(segment_exists(name));
  }
  EXPECT_FALSE(segment_exists(name));
}

TEST_F(SegmentOwner, AHoldThatALivingChildInheritedKeepsTheNameAfterTheParentsEnd) {
  Child owner([](const auto& say, const auto& wait) {
    say(make_segment());
    wait();
    return 0;
  });
  const std::string name = remember(owner.hear());
  {
    OwnerHold hold(name);
    owner.kill();
    Child heir([](const auto& say, const auto& wait) {
      say("inherited");
      wait();
      return 0;
    });
    ASSERT_EQ(heir.hear(), "inherited");
    hold = OwnerHold();
    EXPECT_TRUE(segment_exists(name));
    EXPECT_TRUE(sweeps(0)) << "the child's lock was lost";
  }
  EXPECT_TRUE(sweeps(1));
  EXPECT_FALSE(segment_exists(name));
}

TEST_F(SegmentOwner, AChildHasAnIdentityOfItsOwn) {
  const std::string mine = remember(make_segment());
  Child child([&](const auto& say, const auto& wait) {
    leave_segments();  // it has nothing yet: the parent's stays
    say(make_segment());
    wait();
    return 0;
  });
  const std::string theirs = remember(child.hear());
  EXPECT_NE(segment_token(mine), segment_token(theirs));
  EXPECT_TRUE(segment_exists(marker_of(mine)));
  child.kill();
  EXPECT_TRUE(sweeps(1));
  EXPECT_FALSE(segment_exists(theirs));
  EXPECT_TRUE(segment_exists(mine));
  EXPECT_NE(new_segment_name(), mine);
}

TEST_F(SegmentOwner, LeavingUnlinksWhatWasAdoptedAndKeepsTheRest) {
  const std::string kept = remember(make_segment());
  const std::string adopted = remember(make_segment());
  const std::string disowned = remember(make_segment());
  const std::string foreign = remember("psm_stook_test_" + std::to_string(::getpid()));
  const std::string twice = remember(make_segment());
  make_file(foreign, 1);
  for (const std::string& name : {adopted, disowned, foreign, twice, twice}) adopt_segment(name);
  disown_segment(disowned);
  disown_segment(twice);  // adopted twice: still listed
  disown_segment("never adopted");
  leave_segments();
  EXPECT_TRUE(segment_exists(kept));
  EXPECT_TRUE(segment_exists(disowned));
  EXPECT_FALSE(segment_exists(adopted));
  EXPECT_FALSE(segment_exists(foreign));
  EXPECT_FALSE(segment_exists(twice));
  EXPECT_FALSE(segment_exists(marker_of(kept)));
  // A later segment makes it an owner anew.
  const std::string later = remember(make_segment());
  EXPECT_NE(segment_token(later), segment_token(kept));
  EXPECT_TRUE(segment_exists(marker_of(later)));
}

TEST_F(SegmentOwner, WhatAKilledProcessHadAdoptedGoesWithIt) {
  // Of a process that left, of none, and of this one, which lives: the adopter was to unlink them.
  const std::string foreign = remember("psm_stook_test_" + std::to_string(::getpid()));
  const std::string disowned = remember(foreign + "_disowned");
  const std::string long_name = remember(foreign + std::string(250 - foreign.size(), 'x'));
  make_file(foreign, 1);
  make_file(disowned, 1);
  make_file(long_name, 1);
  const std::string mine = remember(make_segment());
  const std::string mine_too = remember(make_segment());
  Child child([&](const auto& say, const auto& wait) {
    for (const std::string& name : {foreign, disowned, long_name, mine}) adopt_segment(name);
    disown_segment(disowned);
    say("adopted");
    wait();
    return 0;
  });
  EXPECT_EQ(child.hear(), "adopted");
  EXPECT_TRUE(sweeps(0));
  EXPECT_TRUE(segment_exists(foreign));
  child.kill();
  EXPECT_TRUE(sweeps(3));
  EXPECT_FALSE(segment_exists(foreign));
  EXPECT_FALSE(segment_exists(long_name));
  EXPECT_FALSE(segment_exists(mine));
  EXPECT_TRUE(segment_exists(mine_too));
  EXPECT_TRUE(segment_exists(disowned));
}

TEST_F(SegmentOwner, ThousandsMayBeAdopted) {
  constexpr int kMany = 5000;
  std::vector<std::string> names;
  for (int i = 0; i < kMany; ++i) names.push_back(new_segment_name());
  Child child([&](const auto& say, const auto& wait) {
    for (const std::string& name : names) adopt_segment(name);
    for (int i = 0; i < kMany; i += 2) disown_segment(names[static_cast<std::size_t>(i)]);
    for (int i = 0; i < kMany; i += 2) adopt_segment(names[static_cast<std::size_t>(i)]);
    make_file(names.front(), 1);
    make_file(names[kMany / 2 + 1], 1);
    make_file(names.back(), 1);
    say(new_segment_name());
    wait();
    return 0;
  });
  struct stat status{};
  ASSERT_EQ(::stat(("/dev/shm/" + marker_of(child.hear())).c_str(), &status), 0);
  EXPECT_LT(status.st_size, 2 * kMany * 256) << "disowned slots were not used again";
  child.kill();
  EXPECT_TRUE(sweeps(3));
}

TEST_F(SegmentOwner, AMarkersListThatWasTamperedWithDeletesNothingElse) {
  const std::string victim = "/tmp/stook_test_victim_" + std::to_string(::getpid());
  const FileDescriptor file(::open(victim.c_str(), O_CREAT | O_RDWR, 0600));
  ASSERT_TRUE(file.is_open());
  const std::string living = remember(make_segment());
  Child child([&](const auto& say, const auto& wait) {
    adopt_segment("../../" + victim);
    adopt_segment(".");
    adopt_segment(marker_of(living));  // no segment, but the marker of a living process
    say("");
    wait();
    return 0;
  });
  child.hear();
  child.kill();
  EXPECT_TRUE(sweeps(0));
  EXPECT_EQ(::access(victim.c_str(), F_OK), 0);
  EXPECT_TRUE(segment_exists(marker_of(living)));
  ::unlink(victim.c_str());
}

TEST_F(SegmentOwner, FilesThatAreNotNamedAsOursStay) {
  const std::string name = leftover();
  const std::string marker = marker_of(name);
  std::vector<std::string> files;
  for (const std::string& file :
       {marker + "x", marker + "_A", marker + "_1.tmp", "x" + name, std::string("stook_test_file"),
        marker.substr(0, marker.size() - 1)}) {
    make_file(file, 1);
    files.push_back(remember(file));
  }
  EXPECT_TRUE(sweeps(1));
  EXPECT_FALSE(segment_exists(name));
  for (const std::string& file : files) EXPECT_TRUE(segment_exists(file)) << file;
}

TEST_F(SegmentOwner, ASweepThatWasKilledHalfWayIsFinishedByTheNext) {
  const std::string name = leftover();
  // It had the lock, and had removed a segment but not the marker.
  Child sweeper([&](const auto& say, const auto& wait) {
    const int fd = ::open(("/dev/shm/" + marker_of(name)).c_str(), O_RDONLY | O_CLOEXEC);
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return 1;
    say("locked");
    wait();
    return 0;
  });
  ASSERT_EQ(sweeper.hear(), "locked");
  EXPECT_TRUE(sweeps(0)) << "another sweep has it";
  EXPECT_TRUE(segment_exists(name));
  sweeper.kill();
  EXPECT_TRUE(sweeps(1));
  EXPECT_TRUE(files_of_owner(name).empty());
}

TEST_F(SegmentOwner, AHoldWaitsForASweep) {
  const std::string name = leftover();
  Child sweeper([&](const auto& say, const auto& wait) {
    const std::string marker = "/dev/shm/" + marker_of(name);
    const int fd = ::open(marker.c_str(), O_RDONLY | O_CLOEXEC);
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) return 1;
    say("locked");
    wait();
    ::unlink(("/dev/shm/" + name).c_str());
    ::unlink(marker.c_str());
    say("swept");
    wait();  // and the lock stays, as if a child had inherited it
    return 0;
  });
  ASSERT_EQ(sweeper.hear(), "locked");
  const std::size_t descriptors = open_descriptors();
  std::thread holder([&] {
    const OwnerHold hold(name);
    EXPECT_FALSE(segment_exists(name)) << "it did not wait";
  });
  while (open_descriptors() == descriptors) std::this_thread::yield();  // it has the marker open
  sweeper.go_on();
  ASSERT_EQ(sweeper.hear(), "swept");
  holder.join();
}

TEST_F(SegmentOwner, ProcessesThatSweepAtOnceSweepEverythingOnce) {
  for (int round = 0; round < 10; ++round) {
    std::vector<std::string> names;
    for (int i = 0; i < 8; ++i) names.push_back(leftover());
    const auto sweep = [](const auto& say, const auto& wait) {
      say("ready");
      wait();
      return static_cast<int>(sweep_leftover_segments());
    };
    Child a(sweep);
    Child b(sweep);
    a.hear();
    b.hear();
    a.go_on();
    b.go_on();
    const int swept = a.wait() + b.wait();
    EXPECT_TRUE(swept == 8 || !has_private_shared_memory()) << swept;
    for (const std::string& name : names) EXPECT_TRUE(files_of_owner(name).empty());
  }
}

// Owners come to be while others sweep: a marker that was not locked yet may be taken for a
// leftover, and its maker must notice.
TEST_F(SegmentOwner, AnOwnerThatComesToBeDuringASweepIsSafe) {
  Child sweeper([](const auto& say, const auto&) {
    say("ready");
    for (;;) sweep_leftover_segments();
    return 0;
  });
  sweeper.hear();
  for (int i = 0; i < 500; ++i) {
    const std::string name = make_segment();
    ASSERT_TRUE(segment_exists(marker_of(name))) << i;
    ASSERT_TRUE(segment_exists(name)) << i;
    ::unlink(("/dev/shm/" + name).c_str());
    leave_segments();
  }
}

TEST_F(SegmentOwner, AnotherUsersFilesAreNotTouched) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  const std::string name = leftover();
  EXPECT_EQ(exit_code_of_child([&] {
              if (::seteuid(65534) != 0) return 100;
              return sweeps(0) ? 0 : 1;
            }),
            0);
  EXPECT_TRUE(segment_exists(name));
  EXPECT_TRUE(segment_exists(marker_of(name)));
  // Nor by root, who could.
  Child child([](const auto& say, const auto& wait) {
    if (::seteuid(65534) != 0) return 100;
    say(make_segment());
    wait();
    return 0;
  });
  const std::string theirs = remember(child.hear());
  made_.insert(marker_of(theirs));
  child.kill();
  EXPECT_TRUE(sweeps(1)) << "root's own";
  EXPECT_FALSE(segment_exists(name));
  EXPECT_TRUE(segment_exists(theirs));
  EXPECT_TRUE(segment_exists(marker_of(theirs)));
  EXPECT_EQ(exit_code_of_child([&] {
              if (::seteuid(65534) != 0) return 100;
              return sweeps(1) ? 0 : 1;
            }),
            0);
  EXPECT_FALSE(segment_exists(theirs));
}

TEST_F(SegmentOwner, ThreadsNameAdoptHoldAndLetGo) {
  Child owner([](const auto& say, const auto& wait) {
    say(make_segment());
    wait();
    leave_segments();
    return 0;
  });
  const std::string theirs = remember(owner.hear());
  const std::size_t descriptors = open_descriptors();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 300; ++i) {
        const OwnerHold hold(theirs);
        const std::string name = new_segment_name();
        adopt_segment(name);
        EXPECT_TRUE(segment_exists(theirs));
        disown_segment(name);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  leave_segments();
  EXPECT_EQ(open_descriptors(), descriptors);
  EXPECT_TRUE(segment_exists(theirs));
}

TEST_F(SegmentOwner, WithoutDescriptorsThereIsAnErrorAndLaterThereIsNot) {
  EXPECT_EQ(exit_code_of_child([] {
              see_an_error();
              std::vector<int> taken;
              for (int fd = 0; (fd = ::dup(0)) >= 0;) taken.push_back(fd);
              try {
                new_segment_name();
                return 1;
              } catch (const Error& error) {
                if (error.code() != ErrorCode::kSystem || error.system_errno() != EMFILE) return 2;
              }
              if (!sweeps(0)) return 3;
              for (const int fd : taken) ::close(fd);
              new_segment_name();
              leave_segments();
              return 0;
            }),
            0);
}

}  // namespace
}  // namespace stook::shm
