#include "shm/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <latch>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "shm/shared_memory.h"
#include "tests/cpp/unit/child_process.h"
#include "tests/cpp/unit/segment_files.h"
#include "tests/cpp/unit/shared_pages.h"

namespace stook::shm {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLong{60'000};

// AddressSanitizer and ThreadSanitizer need address space and mappings of their own.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// The error that `body` throws; code kBroken and no text if it throws none.
template <class Body>
Error error_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  return Error(ErrorCode::kBroken, "nothing was thrown");
}

bool says(const Error& error, const std::string& text) {
  if (std::string(error.what()).find(text) != std::string::npos) return true;
  std::fprintf(stderr, "'%s' does not say '%s'\n", error.what(), text.c_str());
  return false;
}

std::size_t mappings_of(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    count += line.find("/dev/shm/" + name) != std::string::npos ? 1U : 0U;
  }
  return count;
}

void limit(int what, rlim_t most) {
  rlimit both{};
  ::getrlimit(what, &both);
  both.rlim_cur = most;
  if (::setrlimit(what, &both) != 0) throw std::runtime_error("setrlimit");
}

class SegmentTest : public ::testing::Test {
 protected:
  SegmentTest() {
    has_private_shared_memory();
    sweep_leftover_segments();
  }
  ~SegmentTest() override {
    configure_reclaimer(0, 0);
    leave_segments();
    for (const std::string& name : made_) ::unlink(("/dev/shm/" + name).c_str());
    sweep_leftover_segments();
    if (!has_private_shared_memory()) return;
    for (const std::string& name : segment_files()) ADD_FAILURE() << name << " was left";
  }
  std::string remember(std::string name) {
    made_.insert(name);
    return name;
  }
  Segment::Pointer create(std::uint64_t bytes) {
    Segment::Pointer segment = Segment::create(bytes);
    remember(segment->name());
    return segment;
  }

  std::set<std::string> made_;
};

TEST_F(SegmentTest, IsMadeZeroedReservedAndPrivateToTheUser) {
  constexpr std::uint64_t kBytes = (std::uint64_t{20} << 20) + 12345;  // more than one step
  const Segment::Pointer segment = create(kBytes);
  EXPECT_EQ(segment->size(), kBytes);
  EXPECT_TRUE(segment->is_created_here());
  EXPECT_FALSE(segment->unlinks_on_release());
  struct stat status{};
  ASSERT_EQ(::stat(("/dev/shm/" + segment->name()).c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0600U);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_size), kBytes);
  EXPECT_GE(static_cast<std::uint64_t>(status.st_blocks) * 512, kBytes) << "not reserved";
  EXPECT_TRUE(all_bytes_are(segment->data(), kBytes, 0));
  fill_bytes(segment->data(), kBytes, 0xAB);
}

TEST_F(SegmentTest, HasAtLeastAPage) {
  for (const std::uint64_t bytes : {0U, 1U, 4095U, 4096U, 4097U}) {
    const Segment::Pointer segment = create(bytes);
    EXPECT_GE(segment->size(), std::max<std::uint64_t>(bytes, 4096));
    fill_bytes(segment->data(), segment->size(), 1);
  }
}

TEST_F(SegmentTest, TwoMappingsShareOneMemory) {
  const Segment::Pointer made = create(10'000);
  const Segment::Pointer attached = Segment::attach("/" + made->name());
  EXPECT_EQ(attached->name(), made->name());
  EXPECT_EQ(attached->size(), made->size());
  EXPECT_NE(attached->data(), made->data());
  EXPECT_FALSE(attached->is_created_here());
  made->data()[9'999] = std::byte{7};
  EXPECT_EQ(attached->data()[9'999], std::byte{7});
  attached->data()[0] = std::byte{8};
  EXPECT_EQ(made->data()[0], std::byte{8});
}

TEST_F(SegmentTest, CrossesToAnotherProgramByName) {
  Child other([](const auto& say, const auto& wait) {
    const Segment::Pointer segment = Segment::create(100);
    std::memcpy(segment->data(), "hello", 6);
    say(segment->name());
    wait();
    const bool answered = std::memcmp(segment->data(), "world", 6) == 0;
    leave_segments();
    return answered ? 0 : 1;
  });
  const std::string name = remember(other.hear());
  {
    const Segment::Pointer segment = Segment::attach(name);
    EXPECT_EQ(std::memcmp(segment->data(), "hello", 6), 0);
    std::memcpy(segment->data(), "world", 6);
  }
  other.go_on();
  EXPECT_EQ(other.wait(), 0);
  // Its owner left in good order: it still opens, until somebody unlinks it.
  EXPECT_EQ(std::memcmp(Segment::attach(name)->data(), "world", 6), 0);
  EXPECT_TRUE(unlink_segment(name));
  EXPECT_EQ(error_of([&] { Segment::attach(name); }).system_errno(), ENOENT);
}

TEST_F(SegmentTest, ReleasingUnmapsAndKeepsTheNameUnlessAsked) {
  Segment::Pointer segment = create(100);
  const std::string name = segment->name();
  EXPECT_EQ(mappings_of(name), 1U);
  segment.reset();
  EXPECT_EQ(mappings_of(name), 0U);
  EXPECT_TRUE(segment_exists(name));

  segment = Segment::attach(name);
  segment->unlink_on_release();
  segment->unlink_on_release();
  EXPECT_TRUE(segment->unlinks_on_release());
  segment->keep_on_release();
  EXPECT_FALSE(segment->unlinks_on_release());
  segment.reset();
  EXPECT_TRUE(segment_exists(name)) << "it was to be kept";
  leave_segments();
  EXPECT_TRUE(segment_exists(name)) << "it was still listed";

  segment = Segment::attach(name);
  segment->unlink_on_release();
  segment.reset();
  EXPECT_FALSE(segment_exists(name));
}

TEST_F(SegmentTest, WhatIsToBeUnlinkedGoesWithTheProcessIfItLeavesOrIsKilled) {
  const std::string name = create(100)->name();
  for (const bool killed : {false, true}) {
    const std::string mine = remember(create(100)->name());
    Child child([&](const auto& say, const auto& wait) {
      const Segment::Pointer attached = Segment::attach(mine);
      attached->unlink_on_release();
      say("attached");
      wait();
      leave_segments();
      return 0;
    });
    EXPECT_EQ(child.hear(), "attached");
    if (killed) {
      child.kill();
      EXPECT_TRUE(sweeps(1));
    } else {
      child.go_on();
      EXPECT_EQ(child.wait(), 0);
    }
    EXPECT_FALSE(segment_exists(mine));
    EXPECT_TRUE(segment_exists(name));
  }
}

TEST_F(SegmentTest, ASecretNameGoesWithTheSegmentOrTheProcessUnlessItIsTold) {
  EXPECT_EQ(exit_code_of_child([] {
              Segment::Pointer told = Segment::create(100, true);
              Segment::Pointer dropped = Segment::create(100, true);
              Segment::Pointer there = Segment::create(100, true);
              Segment::Pointer flagged = Segment::create(100, true);
              const std::string names[] = {told->name(), dropped->name(), there->name(),
                                           flagged->name()};
              told->tell_name();
              flagged->unlink_on_release();
              flagged->tell_name();  // which does not take that back
              dropped.reset();
              if (segment_exists(names[1]) || !segment_exists(names[2])) return 1;
              leave_segments();
              if (!segment_exists(names[0])) return 2;
              if (segment_exists(names[2]) || segment_exists(names[3])) return 3;
              told.reset();
              if (!segment_exists(names[0])) return 4;
              unlink_segment(names[0]);
              return 0;
            }),
            0);
}

TEST_F(SegmentTest, AForkedChildLeavesSecretNamesToItsParent) {
  const Segment::Pointer mine = Segment::create(100, true);
  EXPECT_EQ(exit_code_of_child([&] {
              leave_segments();
              Segment::release(const_cast<Segment*>(mine.get()));
              return 0;
            }),
            0);
  EXPECT_TRUE(segment_exists(mine->name()));
}

TEST_F(SegmentTest, MappingsOutliveTheName) {
  const Segment::Pointer made = create(100);
  const Segment::Pointer attached = Segment::attach(made->name());
  made->data()[5] = std::byte{5};
  EXPECT_TRUE(unlink_segment("/" + made->name()));
  EXPECT_FALSE(unlink_segment(made->name()));
  EXPECT_EQ(attached->data()[5], std::byte{5});
  EXPECT_EQ(error_of([&] { Segment::attach(made->name()); }).system_errno(), ENOENT);
}

TEST_F(SegmentTest, WhatIsGoneAlreadyIsNoFailure) {
  Segment::Pointer segment = create(100);
  segment->unlink_on_release();
  EXPECT_TRUE(unlink_segment(segment->name()));
  const std::uint64_t failures = reclaimer_stats().failures;
  segment.reset();
  EXPECT_EQ(reclaimer_stats().failures, failures);
}

TEST_F(SegmentTest, WhatWasReleasedIsNotUnlinkedAgainWhenTheProcessLeaves) {
  const std::string name = remember("psm_stook_test_" + std::to_string(::getpid()));
  make_file(name, 100);
  Segment::Pointer segment = Segment::attach(name);
  segment->unlink_on_release();
  segment.reset();
  EXPECT_FALSE(segment_exists(name));
  make_file(name, 100);  // another's now
  leave_segments();
  EXPECT_TRUE(segment_exists(name));
}

TEST_F(SegmentTest, AnAttachmentKeepsTheNameOfAKilledOwnerUntilItIsReleased) {
  Child owner([](const auto& say, const auto& wait) {
    const Segment::Pointer segment = Segment::create(100);
    say(segment->name());
    wait();
    return 0;
  });
  const std::string name = remember(owner.hear());
  Segment::Pointer first = Segment::attach(name);
  owner.kill();
  EXPECT_TRUE(sweeps(0));
  Segment::Pointer second = Segment::attach(name);
  first.reset();
  EXPECT_TRUE(sweeps(0));
  EXPECT_TRUE(segment_exists(name));
  second.reset();
  EXPECT_TRUE(files_of_owner(name).empty());
}

TEST_F(SegmentTest, AForkedChildUnmapsAndLeavesTheName) {
  Segment::Pointer segment = create(100);
  segment->unlink_on_release();
  segment->data()[0] = std::byte{1};
  EXPECT_EQ(exit_code_of_child([&] {
              if (segment->is_created_here() || segment->unlinks_on_release()) return 1;
              if (segment->data()[0] != std::byte{1}) return 2;
              segment->data()[0] = std::byte{2};
              const std::string name = segment->name();
              segment.reset();
              if (mappings_of(name) != 0) return 3;
              leave_segments();
              return segment_exists(name) ? 0 : 4;
            }),
            0);
  EXPECT_EQ(segment->data()[0], std::byte{2});
  EXPECT_TRUE(segment->is_created_here());
  EXPECT_TRUE(segment_exists(segment->name()));
  const std::string name = segment->name();
  segment.reset();
  EXPECT_FALSE(segment_exists(name));
}

TEST_F(SegmentTest, AForkedChildMayAskForItsOwnCopyToUnlink) {
  Segment::Pointer segment = create(100);
  EXPECT_EQ(exit_code_of_child([&] {
              segment->unlink_on_release();
              if (!segment->unlinks_on_release() || segment->is_created_here()) return 1;
              const std::string name = segment->name();
              segment.reset();
              leave_segments();
              return segment_exists(name) ? 2 : 0;
            }),
            0);
  EXPECT_FALSE(segment->unlinks_on_release());
}

TEST_F(SegmentTest, WhatIsNoNameIsRefused) {
  for (const std::string& name :
       {std::string(), std::string("/"), std::string("."), std::string(".."), std::string("/.."),
        std::string("a/b"), std::string("//a"), std::string("../etc/passwd"),
        std::string("a\0b", 3), std::string(251, 'x'), std::string("stook_0123456789abc"),
        std::string("/stook_0123456789abc")}) {
    EXPECT_EQ(error_of([&] { Segment::attach(name); }).code(), ErrorCode::kInvalidArgument) << name;
    EXPECT_EQ(error_of([&] { unlink_segment(name); }).code(), ErrorCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(error_of([] { Segment::attach(std::string(250, 'x')); }).system_errno(), ENOENT);
}

TEST_F(SegmentTest, WhatIsNoSegmentIsRefused) {
  const std::string base = "psm_stook_test_" + std::to_string(::getpid());
  make_file(remember(base), 0);
  const Error empty = error_of([&] { Segment::attach(base); });
  EXPECT_EQ(empty.code(), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(says(empty, "is empty"));
  const std::string fifo = remember(base + "_fifo");
  ASSERT_EQ(::mkfifo(("/dev/shm/" + fifo).c_str(), 0600), 0);
  const Error pipe = error_of([&] { Segment::attach(fifo); });
  EXPECT_EQ(pipe.code(), ErrorCode::kInvalidArgument);
  EXPECT_TRUE(says(pipe, "no regular file"));
  const std::string link = remember(base + "_link");
  ASSERT_EQ(::symlink("/etc/passwd", ("/dev/shm/" + link).c_str()), 0);
  EXPECT_EQ(error_of([&] { Segment::attach(link); }).system_errno(), ELOOP);
}

TEST_F(SegmentTest, AnotherUserIsDenied) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  const Segment::Pointer segment = create(100);
  EXPECT_EQ(exit_code_of_child([&] {
              if (::seteuid(65534) != 0) return 100;
              const Error attach = error_of([&] { Segment::attach(segment->name()); });
              if (attach.code() != ErrorCode::kSystem || attach.system_errno() != EACCES) return 1;
              const Error unlink = error_of([&] { unlink_segment(segment->name()); });
              if (unlink.code() != ErrorCode::kSystem || unlink.system_errno() != EACCES) return 2;
              return 0;
            }),
            0);
  EXPECT_TRUE(segment_exists(segment->name()));
}

TEST_F(SegmentTest, AThousandNeedNoDescriptors) {
  EXPECT_EQ(exit_code_of_child([] {
              limit(RLIMIT_NOFILE, 64);
              std::vector<Segment::Pointer> made;
              std::vector<Segment::Pointer> attached;
              for (int i = 0; i < 1000; ++i) {
                made.push_back(Segment::create(64));
                made.back()->unlink_on_release();
                made.back()->data()[0] = static_cast<std::byte>(i);
              }
              // And in another process, for which they are another's.
              const int code = exit_code_of_child([&] {
                for (const auto& segment : made) {
                  attached.push_back(Segment::attach(segment->name()));
                }
                for (std::size_t i = 0; i < 1000; ++i) {
                  if (attached[i]->data()[0] != static_cast<std::byte>(i)) return 1;
                }
                return 0;
              });
              made.clear();
              leave_segments();
              return code;
            }),
            0);
}

TEST_F(SegmentTest, WithoutDescriptorsThereIsAnErrorAndNothingLeft) {
  const std::string name = create(100)->name();
  EXPECT_EQ(exit_code_of_child([&] {
              leave_segments();
              see_an_error();
              std::vector<int> taken;
              for (int fd = 0; (fd = ::dup(0)) >= 0;) taken.push_back(fd);
              const Error attach = error_of([&] { Segment::attach(name); });
              if (attach.code() != ErrorCode::kSystem || attach.system_errno() != EMFILE) return 1;
              return error_of([] { Segment::create(1); }).system_errno() == EMFILE ? 0 : 2;
            }),
            0);
  EXPECT_EQ(files_of_owner(name), (std::set<std::string>{name, marker_of(name)}));
}

TEST_F(SegmentTest, MoreThanThereIsIsAnErrorAndNothingIsLeft) {
  const std::set<std::string> before = segment_files();
  for (const std::uint64_t bytes : {std::uint64_t{1} << 50, std::uint64_t{1} << 62, UINT64_MAX}) {
    const Error error = error_of([&] { Segment::create(bytes); });
    EXPECT_EQ(error.code(), ErrorCode::kNoSharedMemory);
    EXPECT_TRUE(says(error, std::to_string(bytes) + " bytes"));
  }
  EXPECT_TRUE(segment_files() == before || !has_private_shared_memory());
}

TEST_F(SegmentTest, BeyondTheFileSizeLimitIsAnErrorAndNoSignal) {
  EXPECT_EQ(exit_code_of_child([] {
              limit(RLIMIT_FSIZE, 1 << 20);
              const Error error = error_of([] { Segment::create((1 << 20) + 1); });
              if (error.code() != ErrorCode::kNoSharedMemory) return 1;
              if (!says(error, "RLIMIT_FSIZE")) return 2;
              Segment::create(1 << 20)->unlink_on_release();
              leave_segments();
              return 0;
            }),
            0);
}

// A /dev/shm of 1 MiB, seen by the child alone.
TEST_F(SegmentTest, AFullSharedMemoryDirectoryIsAnErrorThatSaysHowFull) {
  const int code = exit_code_of_child([] {
    if (::unshare(CLONE_NEWNS) != 0) return 77;
    if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m,mode=1777") != 0) {
      return 77;
    }
    const Segment::Pointer first = Segment::create(600 << 10);
    const std::set<std::string> before = segment_files();
    const Error error = error_of([] { Segment::create(500 << 10); });
    if (error.code() != ErrorCode::kNoSharedMemory || error.system_errno() != ENOSPC) return 1;
    if (!says(error, std::to_string(500 << 10) + " bytes")) return 2;
    if (!says(error, "of " + std::to_string(1 << 20)) || !says(error, "shm-size")) return 3;
    if (segment_files() != before) return 4;  // the name of what could not be made was left
    std::vector<Segment::Pointer> small;
    while (error_of([&] { small.push_back(Segment::create(1)); }).code() == ErrorCode::kBroken) {
      fill_bytes(small.back()->data(), small.back()->size(), 1);
    }
    // Not one page for the list of what is to be unlinked.
    const Error full = error_of([&] { first->unlink_on_release(); });
    if (full.code() != ErrorCode::kNoSharedMemory || first->unlinks_on_release()) return 5;
    if (!says(full, "release arrays")) return 6;
    small.pop_back();
    unlink_segment(small.back()->name());
    small.pop_back();
    first->unlink_on_release();
    // Files may run out before bytes do.
    if (::mount("tmpfs", "/dev/shm", "tmpfs", 0, "size=1m,mode=1777,nr_inodes=2") != 0) return 7;
    const Segment::Pointer only = Segment::create(1);
    if (!says(error_of([] { Segment::create(1); }), "no more files")) return 8;
    return 0;
  });
  if (code == 77) GTEST_SKIP() << "needs the right to mount a tmpfs (CAP_SYS_ADMIN)";
  EXPECT_EQ(code, 0);
}

TEST_F(SegmentTest, RunningOutOfMappingsNamesTheLimit) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer fails first when mappings run out";
  std::ifstream file("/proc/sys/vm/max_map_count");
  std::size_t most = 0;
  if (!(file >> most) || most > 300'000) GTEST_SKIP() << "vm.max_map_count is too large to fill";
  const std::string name = create(100)->name();
  EXPECT_EQ(exit_code_of_child([&] {
              // Neighbours that differ in protection are mappings of their own.
              const std::size_t bytes = most * kPageBytes;
              void* memory = ::mmap(nullptr, bytes, PROT_NONE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
              if (memory == MAP_FAILED) return 1;
              auto* page = static_cast<std::byte*>(memory) + kPageBytes;
              while (::mprotect(page, kPageBytes, PROT_READ) == 0) page += 2 * kPageBytes;
              while (::mmap(nullptr, kPageBytes, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0) !=
                     MAP_FAILED) {
              }
              const Error attach = error_of([&] { Segment::attach(name); });
              const Error create = error_of([] { Segment::create(100); });
              ::munmap(memory, bytes);
              if (attach.code() != ErrorCode::kSystem || attach.system_errno() != ENOMEM) return 2;
              if (!says(attach, "vm.max_map_count")) return 3;
              if (create.system_errno() != ENOMEM || !says(create, std::to_string(most))) return 4;
              Segment::create(100)->unlink_on_release();
              leave_segments();
              return 0;
            }),
            0);
}

TEST_F(SegmentTest, RunningOutOfAddressSpaceDoesNotBlameTheMappings) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer needs more address space than the limit leaves";
  EXPECT_EQ(exit_code_of_child([&] {
              limit(RLIMIT_AS, std::uint64_t{256} << 20);
              const Error error = error_of([] { Segment::create(std::uint64_t{300} << 20); });
              if (error.system_errno() != ENOMEM) return 1;
              if (!says(error, "address space")) return 2;
              leave_segments();
              return 0;
            }),
            0);
}

TEST_F(SegmentTest, AReclaimThreadUnmapsAndUnlinks) {
  configure_reclaimer(1, 10);
  const std::uint64_t before = reclaimer_stats().done_by_threads;
  std::vector<std::string> names;
  for (int i = 0; i < 5; ++i) {
    Segment::Pointer segment = create(100'000);
    segment->unlink_on_release();
    names.push_back(segment->name());
  }
  ASSERT_TRUE(flush_reclaimer(kLong));
  EXPECT_EQ(reclaimer_stats().done_by_threads, before + 5);
  for (const std::string& name : names) {
    EXPECT_FALSE(segment_exists(name));
    EXPECT_EQ(mappings_of(name), 0U);
  }
}

TEST_F(SegmentTest, NamesStillQueuedAtTheEndGo) {
  struct Blocker final : Reclaimable {
    std::latch entered{1};
    std::latch gate{1};
    void reclaim() noexcept override {
      entered.count_down();
      gate.wait();
    }
    void reclaim_at_exit() noexcept override {}
  };
  EXPECT_EQ(exit_code_of_child([] {
              configure_reclaimer(1, 10);
              auto* blocker = new Blocker();
              submit_reclaim(blocker);
              blocker->entered.wait();
              Segment::Pointer segment = Segment::create(100);
              Segment::Pointer kept = Segment::create(100);
              const std::string name = segment->name();
              const std::string kept_name = kept->name();
              segment->unlink_on_release();
              segment.reset();
              kept.reset();
              if (!segment_exists(name)) return 1;
              finish_reclaimer(milliseconds{1});
              if (segment_exists(name)) return 2;
              if (!segment_exists(kept_name)) return 3;
              unlink_segment(kept_name);
              leave_segments();
              return 0;
            }),
            0);
}

TEST_F(SegmentTest, FailuresOnReclaimThreadsCostNoPlaceInTheQueue) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  EXPECT_EQ(exit_code_of_child([] {
              constexpr std::uint64_t kCount = 50;
              configure_reclaimer(2, 2);
              std::vector<Segment::Pointer> segments;
              std::vector<std::string> names;
              for (std::uint64_t i = 0; i < kCount; ++i) {
                segments.push_back(Segment::create(100));
                segments.back()->unlink_on_release();
                names.push_back(segments.back()->name());
              }
              if (::seteuid(65534) != 0) return 1;
              ::testing::internal::CaptureStderr();
              for (Segment::Pointer& segment : segments) {
                segment.reset();
                // So that the threads do each of them.
                if (!flush_reclaimer(std::chrono::seconds(30))) return 2;
              }
              const std::string text = ::testing::internal::GetCapturedStderr();
              if (std::count(text.begin(), text.end(), '\n') != 1) return 3;
              if (text.find(names.front()) == std::string::npos) return 4;
              const ReclaimerStats stats = reclaimer_stats();
              if (stats.failures != kCount || stats.done_by_threads != kCount) return 5;
              if (stats.outstanding != 0 || stats.threads != 2) return 6;
              if (::seteuid(0) != 0) return 7;
              for (const std::string& name : names) unlink_segment(name);
              leave_segments();
              return 0;
            }),
            0);
}

TEST_F(SegmentTest, ANameThatCannotBeRemovedIsCounted) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  EXPECT_EQ(exit_code_of_child([] {
              Segment::Pointer segment = Segment::create(100);
              const std::string name = segment->name();
              segment->unlink_on_release();
              if (::seteuid(65534) != 0) return 1;
              ::testing::internal::CaptureStderr();
              segment.reset();
              const std::string text = ::testing::internal::GetCapturedStderr();
              if (reclaimer_stats().failures != 1) return 2;
              if (text.find(name) == std::string::npos) return 3;
              if (::seteuid(0) != 0) return 4;
              unlink_segment(name);
              leave_segments();
              return 0;
            }),
            0);
}

}  // namespace
}  // namespace stook::shm
