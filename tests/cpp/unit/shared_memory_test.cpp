#include "shm/shared_memory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <csignal>
#include <filesystem>
#include <string>
#include <utility>

#include "shm/error.h"
#include "tests/cpp/unit/child_process.h"
#include "tests/cpp/unit/shared_pages.h"

namespace stook::shm {
namespace {

constexpr std::uint64_t kBytes = 64 * kPageBytes;

ErrorCode code_of(const Error& error) { return error.code(); }

std::string link_target(int fd) {
  return std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd)).string();
}

TEST(SharedMemory, CostsNothingUntilItIsTouched) {
  constexpr std::uint64_t kHuge = std::uint64_t{1} << 36;
  const FileDescriptor fd = create_shared_memory("stook-test", kHuge);
  const Mapping memory(fd.get(), kHuge, Access::kReadWrite);
  EXPECT_EQ(backed_bytes(fd.get()), 0U);
  memory.data()[kHuge / 2] = std::byte{1};
  EXPECT_EQ(backed_bytes(fd.get()), kPageBytes);
}

TEST(SharedMemory, HasNoNameAndOnlyItsUserMayOpenIt) {
  const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  EXPECT_EQ(link_target(fd.get()), "/memfd:stook-test (deleted)");
  struct stat status{};
  ASSERT_EQ(::fstat(fd.get(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  EXPECT_EQ(static_cast<std::uint64_t>(status.st_size), kBytes);
}

TEST(SharedMemory, IsNotInheritedByOtherPrograms) {
  const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(SharedMemory, CannotBeResizedNorUnsealed) {
  const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  EXPECT_EQ(::ftruncate(fd.get(), 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::ftruncate(fd.get(), 2 * kBytes), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST(SharedMemory, IsSeenAlikeThroughEveryMapping) {
  const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  const Mapping one(fd.get(), kBytes, Access::kReadWrite);
  const Mapping other(fd.get(), kBytes, Access::kReadOnly);
  ASSERT_NE(one.data(), other.data());
  one.data()[kBytes - 1] = std::byte{42};
  EXPECT_EQ(other.data()[kBytes - 1], std::byte{42});
}

TEST(SharedMemory, OutlivesItsDescriptorWhileMapped) {
  FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  const Mapping memory(fd.get(), kBytes, Access::kReadWrite);
  fd.reset();
  memory.data()[0] = std::byte{7};
  EXPECT_EQ(memory.data()[0], std::byte{7});
}

TEST(SharedMemory, CannotBeWrittenThroughAReadOnlyMapping) {
  const int status = status_of_child([] {
    std::signal(SIGSEGV, SIG_DFL);
    const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
    const Mapping memory(fd.get(), kBytes, Access::kReadOnly);
    *reinterpret_cast<volatile char*>(memory.data()) = 1;
    return 0;
  });
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGSEGV);
}

TEST(SharedMemory, PunchedPagesGoBackAndReadAsZero) {
  const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  const Mapping memory(fd.get(), kBytes, Access::kReadWrite);
  fill_bytes(memory.data(), kBytes, 0xAB);
  ASSERT_EQ(backed_bytes(fd.get()), kBytes);

  ASSERT_TRUE(memory.punch(8 * kPageBytes, 16 * kPageBytes));

  EXPECT_EQ(backed_bytes(fd.get()), 48 * kPageBytes);
  EXPECT_EQ(backed_pages(memory, 8 * kPageBytes, 16 * kPageBytes), 0U);
  EXPECT_TRUE(all_bytes_are(memory.data(), 8 * kPageBytes, 0xAB));
  EXPECT_TRUE(all_bytes_are(memory.data() + 24 * kPageBytes, 40 * kPageBytes, 0xAB));
  EXPECT_TRUE(all_bytes_are(memory.data() + 8 * kPageBytes, 16 * kPageBytes, 0));
}

TEST(SharedMemory, PunchSaysWhenTheSystemRefuses) {
  const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  const Mapping memory(fd.get(), kBytes, Access::kReadWrite);
  EXPECT_TRUE(memory.punch(0, 0));
  EXPECT_FALSE(memory.punch(1, kPageBytes)) << "an offset inside a page";
}

TEST(SharedMemory, ContainsItsOwnAddressesOnly) {
  const FileDescriptor fd = create_shared_memory("stook-test", kBytes);
  const Mapping memory(fd.get(), kBytes, Access::kReadWrite);
  EXPECT_TRUE(memory.contains(memory.data()));
  EXPECT_TRUE(memory.contains(memory.data() + kBytes - 1));
  EXPECT_FALSE(memory.contains(memory.data() + kBytes));
  EXPECT_FALSE(memory.contains(memory.data() - 1));
}

TEST(SharedMemory, SaysWhatItCouldNotReserve) {
  try {
    (void)create_shared_memory("stook-test", std::uint64_t{1} << 63);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(code_of(error), ErrorCode::kSystem);
    EXPECT_NE(error.system_errno(), 0);
    EXPECT_NE(std::string(error.what()).find("9223372036854775808"), std::string::npos);
  }
}

TEST(SharedMemory, AFileSizeLimitIsAnErrorNotASignal) {
  EXPECT_EQ(exit_code_of_child([] {
              std::signal(SIGXFSZ, SIG_IGN);  // as Python has it
              const rlimit limit{kBytes, kBytes};
              if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return 1;
              try {
                (void)create_shared_memory("stook-test", 2 * kBytes);
              } catch (const Error& error) {
                return error.system_errno() == EFBIG ? 0 : 2;
              }
              return 3;
            }),
            0);
}

TEST(SharedMemory, SaysWhatItCouldNotMap) {
  const FileDescriptor fd = create_shared_memory("stook-test", std::uint64_t{1} << 60);
  try {
    const Mapping memory(fd.get(), std::uint64_t{1} << 60, Access::kReadWrite);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(code_of(error), ErrorCode::kSystem);
    EXPECT_EQ(error.system_errno(), ENOMEM);
  }
  EXPECT_THROW((Mapping{-1, kBytes, Access::kReadWrite}), Error);
}

TEST(FileDescriptor, ClosesOnceAndMovesItsOwnership) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  FileDescriptor reader(ends[0]);
  {
    FileDescriptor writer(ends[1]);
    FileDescriptor owner(std::move(writer));
    EXPECT_FALSE(writer.is_open());  // NOLINT: what a moved-from descriptor is, is the point
    EXPECT_EQ(owner.get(), ends[1]);
    writer = std::move(owner);
    EXPECT_EQ(writer.get(), ends[1]);
    EXPECT_NE(::fcntl(ends[1], F_GETFD), -1);
  }
  EXPECT_EQ(::fcntl(ends[1], F_GETFD), -1) << "still open";
  EXPECT_EQ(reader.release(), ends[0]);
  EXPECT_FALSE(reader.is_open());
  EXPECT_NE(::fcntl(ends[0], F_GETFD), -1) << "released, not closed";
  ::close(ends[0]);
}

}  // namespace
}  // namespace stook::shm
