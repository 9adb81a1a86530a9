#include "shm/memory_limit.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace stook::shm {
namespace {

constexpr std::uint64_t kMega = 1'000'000;
constexpr const char* kUnlimitedV1 = "9223372036854771712\n";

// A made-up /proc and /sys in a directory of its own.
class MemoryLimitsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "stook-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    root_ = name;
    write("/proc/meminfo",
          "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"
          "Cached:          6000000 kB\nShmem:           2000000 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  void mount_v2(const std::string& group) {
    write("/proc/self/mountinfo",
          "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
          "30 22 0:27 / /sys/fs/cgroup rw,nosuid shared:9 master:3 - cgroup2 cgroup2 "
          "rw,nsdelegate\n");
    write("/proc/self/cgroup", "0::" + group + "\n");
  }
  void mount_v1(const std::string& group, const std::string& mounted = "/") {
    write("/proc/self/mountinfo",
          "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
          "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
          "35 31 0:32 " +
              mounted +
              " /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
              "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    write("/proc/self/cgroup",
          "5:devices:/elsewhere\n4:memory:" + group + "\n1:cpu,cpuacct:/c\n0::/\n");
  }
  void group_v2(const std::string& path, const std::string& max, std::uint64_t current,
                const std::string& stat = "") {
    const std::string directory = "/sys/fs/cgroup" + path;
    write(directory + "/memory.max", max + "\n");
    write(directory + "/memory.current", std::to_string(current) + "\n");
    write(directory + "/memory.stat", stat);
  }
  void group_v1(const std::string& path, const std::string& limit, std::uint64_t usage,
                const std::string& stat = "") {
    const std::string directory = "/sys/fs/cgroup/memory" + path;
    write(directory + "/memory.limit_in_bytes", limit);
    write(directory + "/memory.usage_in_bytes", std::to_string(usage) + "\n");
    write(directory + "/memory.stat", stat);
    write(directory + "/memory.use_hierarchy", "1\n");
  }

  MemoryLimits limits() const { return MemoryLimits(root_ + "/proc", root_); }

  std::string root_;
};

constexpr std::uint64_t kTotal = 16'000'000ull * 1024;
constexpr std::uint64_t kAvailable = 8'000'000ull * 1024;

TEST_F(MemoryLimitsTest, WithoutACgroupTheMachineIsTheLimit) {
  EXPECT_EQ(limits().machine_memory(), kTotal);
  EXPECT_EQ(limits().memory_left(), kAvailable);
}

TEST_F(MemoryLimitsTest, OldKernelsSayWhatIsFreeAndCached) {
  write("/proc/meminfo", "MemTotal: 9 kB\nMemFree: 5 kB\nCached: 7 kB\nShmem: 4 kB\n");
  EXPECT_EQ(limits().memory_left(), (5 + 7 - 4) * 1024);
  write("/proc/meminfo", "MemTotal: 9 kB\nMemFree: 5 kB\nCached: 3 kB\nShmem: 4 kB\n");
  EXPECT_EQ(limits().memory_left(), 5 * 1024);
}

TEST_F(MemoryLimitsTest, WithoutMeminfoTheKernelIsAsked) {
  std::filesystem::remove_all(root_ + "/proc");
  EXPECT_GT(limits().machine_memory(), kMega);
  EXPECT_LT(limits().machine_memory(), kUnlimited);
  EXPECT_GT(limits().memory_left(), 0u);
  EXPECT_LE(limits().memory_left(), limits().machine_memory());
  EXPECT_EQ(limits().oom_kill_count(), 0u);
  EXPECT_EQ(limits().address_space_left(5), 5u);
}

TEST_F(MemoryLimitsTest, V2LimitLessWhatIsUsed) {
  mount_v2("/job");
  group_v2("/job", "300000000", 100 * kMega);
  EXPECT_EQ(limits().machine_memory(), 300 * kMega);
  EXPECT_EQ(limits().memory_left(), 200 * kMega);
}

// A 400 MB file read in a group of 300 MB: all but the program itself is cache.
TEST_F(MemoryLimitsTest, V2CacheIsNotUsed) {
  mount_v2("/job");
  group_v2("/job", "300000000", 300 * kMega,
           "anon 20000000\nfile 280000000\nshmem 30000000\ninactive_anon 50000000\n"
           "active_anon 0\ninactive_file 200000000\nactive_file 40000000\n"
           "slab_reclaimable 5000000\nslab_unreclaimable 1000000\n");
  EXPECT_EQ(limits().memory_left(), 245 * kMega);
}

TEST_F(MemoryLimitsTest, V1CacheIsNotUsed) {
  mount_v1("/job");
  group_v1("/job", "300000000\n", 300 * kMega,
           "cache 1\ninactive_file 1\nactive_file 1\nhierarchical_memory_limit 300000000\n"
           "total_cache 280000000\ntotal_shmem 30000000\ntotal_inactive_file 210000000\n"
           "total_active_file 40000000\n");
  EXPECT_EQ(limits().machine_memory(), 300 * kMega);
  EXPECT_EQ(limits().memory_left(), 250 * kMega);
}

TEST_F(MemoryLimitsTest, CacheBeyondTheUsageLeavesTheLimit) {
  mount_v2("/job");
  group_v2("/job", "300000000", 10 * kMega, "inactive_file 20000000\n");
  EXPECT_EQ(limits().memory_left(), 300 * kMega);
}

TEST_F(MemoryLimitsTest, UsageBeyondTheLimitLeavesNothing) {
  mount_v2("/job");
  group_v2("/job", "300000000", 310 * kMega);
  EXPECT_EQ(limits().memory_left(), 0u);
}

TEST_F(MemoryLimitsTest, V2MaxIsNoLimit) {
  mount_v2("/job");
  group_v2("/job", "max", 300 * kMega);
  EXPECT_EQ(limits().machine_memory(), kTotal);
  EXPECT_EQ(limits().memory_left(), kAvailable);
}

TEST_F(MemoryLimitsTest, V2ThrottlingCountsAsALimit) {
  mount_v2("/job");
  group_v2("/job", "300000000", 100 * kMega);
  write("/sys/fs/cgroup/job/memory.high", "250000000\n");
  EXPECT_EQ(limits().machine_memory(), 250 * kMega);
  EXPECT_EQ(limits().memory_left(), 150 * kMega);
}

TEST_F(MemoryLimitsTest, V1LargestNumberIsNoLimit) {
  mount_v1("/job");
  group_v1("/job", kUnlimitedV1, 300 * kMega);
  EXPECT_EQ(limits().machine_memory(), kTotal);
  EXPECT_EQ(limits().memory_left(), kAvailable);
}

TEST_F(MemoryLimitsTest, V2EveryAncestorCounts) {
  mount_v2("/a/b/c");
  group_v2("/a/b/c", "max", 50 * kMega);
  group_v2("/a/b", "500000000", 100 * kMega);
  group_v2("/a", "900000000", 850 * kMega, "inactive_file 10000000\n");
  EXPECT_EQ(limits().machine_memory(), 500 * kMega);
  EXPECT_EQ(limits().memory_left(), 60 * kMega);  // of /a
  group_v2("/a", "900000000", 100 * kMega);
  EXPECT_EQ(limits().memory_left(), 400 * kMega);  // of /a/b
  group_v2("/a/b/c", "90000000", 50 * kMega);
  EXPECT_EQ(limits().memory_left(), 40 * kMega);  // of /a/b/c
}

TEST_F(MemoryLimitsTest, V1EveryAncestorCountsWhileTheyAreHierarchical) {
  mount_v1("/a/b/c");
  group_v1("/a/b/c", kUnlimitedV1, 50 * kMega);
  group_v1("/a/b", kUnlimitedV1, 50 * kMega);
  group_v1("/a", "400000000\n", 150 * kMega);
  EXPECT_EQ(limits().machine_memory(), 400 * kMega);
  EXPECT_EQ(limits().memory_left(), 250 * kMega);
  write("/sys/fs/cgroup/memory/a/memory.use_hierarchy", "0\n");
  EXPECT_EQ(limits().machine_memory(), kTotal);
  EXPECT_EQ(limits().memory_left(), kAvailable);
}

// A container sees its own group at the mount point; of those above it only the limit is known.
TEST_F(MemoryLimitsTest, V1AncestorsOutOfSightAreKnownByTheirLimit) {
  mount_v1("/docker/1", "/docker/1");
  group_v1("", kUnlimitedV1, 100 * kMega, "hierarchical_memory_limit 300000000\n");
  EXPECT_EQ(limits().machine_memory(), 300 * kMega);
  EXPECT_EQ(limits().memory_left(), 200 * kMega);
}

TEST_F(MemoryLimitsTest, APartlyMountedHierarchyIsReadRelativeToIt) {
  mount_v1("/docker/1/sub", "/docker/1");
  group_v1("", "300000000\n", 100 * kMega);
  group_v1("/sub", "200000000\n", 50 * kMega);
  EXPECT_EQ(limits().memory_left(), 150 * kMega);
  // Not below what is mounted: another group of a like name, and one outside the namespace.
  for (const char* elsewhere : {"/docker/12", "/../../other", "/"}) {
    mount_v1(elsewhere, "/docker/1");
    EXPECT_EQ(limits().memory_left(), 200 * kMega) << elsewhere;
  }
}

TEST_F(MemoryLimitsTest, AV2PathOutsideTheNamespaceIsTheMountPoint) {
  mount_v2("/../../other");
  group_v2("", "300000000", 100 * kMega);
  EXPECT_EQ(limits().memory_left(), 200 * kMega);
}

TEST_F(MemoryLimitsTest, HybridTakesTheHierarchyThatHasMemory) {
  mount_v1("/job");
  group_v1("/job", "300000000\n", 100 * kMega);
  write("/sys/fs/cgroup/unified/cgroup.controllers", "");
  EXPECT_EQ(limits().memory_left(), 200 * kMega);
  // And were both to bound the process, the tighter counts.
  write("/sys/fs/cgroup/unified/memory.max", "150000000\n");
  write("/sys/fs/cgroup/unified/memory.current", "50000000\n");
  EXPECT_EQ(limits().machine_memory(), 150 * kMega);
  EXPECT_EQ(limits().memory_left(), 100 * kMega);
}

TEST_F(MemoryLimitsTest, WithoutMountinfoTheUsualPlacesAreTried) {
  write("/proc/self/cgroup", "0::/job\n");
  group_v2("/job", "300000000", 100 * kMega);
  EXPECT_EQ(limits().memory_left(), 200 * kMega);
  write("/proc/self/cgroup", "4:cpu,memory:/job\n");
  std::filesystem::remove_all(root_ + "/sys");
  group_v1("/job", "300000000\n", 150 * kMega);
  EXPECT_EQ(limits().memory_left(), 150 * kMega);
}

TEST_F(MemoryLimitsTest, MountPointsMayHoldBlanks) {
  write("/proc/self/mountinfo", "30 22 0:27 / /my\\040cgroups\\134x rw - cgroup2 cgroup2 rw\n");
  write("/proc/self/cgroup", "0::/job\n");
  write("/my cgroups\\x/job/memory.max", "300000000\n");
  EXPECT_EQ(limits().machine_memory(), 300 * kMega);
}

TEST_F(MemoryLimitsTest, MalformedLimitsAreNone) {
  mount_v2("/job");
  for (const char* text : {"", "\n", "abc", "-5", "12abc", "0x10", "1.5", "12 13", "300000000.0"}) {
    group_v2("/job", text, 100 * kMega);
    EXPECT_EQ(limits().machine_memory(), kTotal) << text;
    EXPECT_EQ(limits().memory_left(), kAvailable) << text;
  }
  group_v2("/job", "99999999999999999999999", 100 * kMega);
  EXPECT_EQ(limits().memory_left(), kAvailable);
}

TEST_F(MemoryLimitsTest, MalformedProcFilesAreAsMissing) {
  write("/proc/meminfo", "MemTotal\nMemAvailable: lots kB\nMemFree: -3 kB\n: 5\n\n");
  write("/proc/self/mountinfo", "30\n\n- cgroup2\n1 2 3 4 5 6 7 8 9\n1 2 3 / /x rw -\n");
  write("/proc/self/cgroup", "\n:\n0:\n0::\n0::relative\n::\nmemory:/x\n");
  write("/proc/self/status", "VmSize:\nVmSize\n");
  write("/proc/vmstat", "oom_kill\n");
  EXPECT_GT(limits().machine_memory(), kMega);
  EXPECT_GT(limits().memory_left(), 0u);
  EXPECT_EQ(limits().oom_kill_count(), 0u);
  EXPECT_EQ(limits().address_space_left(7), 7u);
}

TEST_F(MemoryLimitsTest, AMissingUsageLeavesTheLimitAndAMissingStatNoCache) {
  mount_v2("/job");
  write("/sys/fs/cgroup/job/memory.max", "300000000\n");
  EXPECT_EQ(limits().memory_left(), 300 * kMega);
  write("/sys/fs/cgroup/job/memory.current", "100000000\n");
  EXPECT_EQ(limits().memory_left(), 200 * kMega);
}

TEST_F(MemoryLimitsTest, AZeroLimitLeavesNothing) {
  mount_v2("/job");
  group_v2("/job", "0", 0);
  EXPECT_EQ(limits().memory_left(), 0u);
}

TEST_F(MemoryLimitsTest, AddressSpaceIsTheLimitLessWhatIsMapped) {
  write("/proc/self/status", "Name:\tx\nVmPeak:\t 9000 kB\nVmSize:\t 3000 kB\nVmRSS:\t 10 kB\n");
  EXPECT_EQ(limits().address_space_left(kUnlimited), kUnlimited);
  EXPECT_EQ(limits().address_space_left(4000 * 1024), 1000u * 1024);
  EXPECT_EQ(limits().address_space_left(2000 * 1024), 0u);
}

TEST_F(MemoryLimitsTest, OomKillsOfV2AreThoseOfTheGroup) {
  write("/proc/vmstat", "nr_free_pages 1\noom_kill 99\n");
  mount_v2("/a/b");
  write("/sys/fs/cgroup/a/memory.events", "low 0\nhigh 0\nmax 9\noom 8\noom_kill 7\n");
  EXPECT_EQ(limits().oom_kill_count(), 99u);  // the group itself says nothing
  write("/sys/fs/cgroup/a/b/memory.events", "low 0\noom 5\noom_kill 3\noom_group_kill 0\n");
  EXPECT_EQ(limits().oom_kill_count(), 3u);
}

TEST_F(MemoryLimitsTest, OomKillsOfV1AreThoseOfTheGroup) {
  write("/proc/vmstat", "oom_kill 99\n");
  mount_v1("/a");
  write("/sys/fs/cgroup/memory/a/memory.oom_control",
        "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n");
  EXPECT_EQ(limits().oom_kill_count(), 4u);
  // Before 4.13 the file counts no kills.
  write("/sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n");
  EXPECT_EQ(limits().oom_kill_count(), 99u);
}

TEST(MemoryLimit, ThisProcessHasSomeMemory) {
  EXPECT_GT(machine_memory(), 16 * kMega);
  EXPECT_LT(machine_memory(), std::uint64_t{1} << 60);
  EXPECT_GT(memory_left(), 0u);
  EXPECT_LE(memory_left(), machine_memory());
}

// What `body` returns in a child process; limits set there do not outlive it.
template <class Body>
int in_child(const Body& body) {
  const ::pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(MemoryLimit, TheFileSizeLimitIsReported) {
  EXPECT_EQ(in_child([] {
              const ::rlimit files{1'000'000, RLIM_INFINITY};
              if (::setrlimit(RLIMIT_FSIZE, &files) != 0) return 1;
              return file_size_limit() == 1'000'000 ? 0 : 2;
            }),
            0);
}

TEST(MemoryLimit, TheAddressSpaceLimitIsReported) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's shadow memory is larger than any limit worth setting";
#endif
  EXPECT_EQ(in_child([] {
              const ::rlimit space{std::uint64_t{1} << 40, RLIM_INFINITY};
              if (::setrlimit(RLIMIT_AS, &space) != 0) return 1;
              const std::uint64_t left = address_space_left();
              return left > 0 && left < (std::uint64_t{1} << 40) ? 0 : 2;
            }),
            0);
}

}  // namespace
}  // namespace stook::shm
