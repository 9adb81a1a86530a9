// The end of a pool: closed, its fork server killed, its parent killed, its parent forked.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "shm/error.h"
#include "tests/cpp/process/pool.h"

namespace stook {
namespace {

using shm::Error;
using shm::ErrorCode;
using workers::Manager;

class PoolEnd : public ProcessTest {
 protected:
  static Order stuck() { return Order{Act::kStick, 0, 0, 0}; }

  // Until every worker is known and `started` jobs have reached user code.
  static void until_started(Pool& pool, std::uint64_t started) {
    while (pool.blackboard().started.load() < started ||
           pool.manager().worker_pids().size() < pool.manager().worker_count()) {
      pool.manager().poll(false);
      pool.manager().wait(false, nullptr);
    }
  }
};

TEST_F(PoolEnd, CloseEndsEveryProcessAndKeepsWhatIsHeld) {
  Pool pool;
  std::vector<Element> kept;
  pool.run(
      0, 20, true, [](std::uint64_t) { return Order{}; },
      [&](Element element) { kept.push_back(std::move(element)); });
  until_started(pool, 20);
  const std::vector<pid_t> pids = pool.manager().worker_pids();
  ASSERT_EQ(pids.size(), 2U);
  pool.manager().close();
  pool.manager().close();
  EXPECT_FALSE(pool.manager().is_open());
  EXPECT_EQ(pool.blackboard().server_ended.load(), 1U) << "the server had to be killed";
  for (const pid_t pid : pids) EXPECT_FALSE(is_running(pid));
  EXPECT_FALSE(is_running(pool.server()));
  for (const Element& element : kept) EXPECT_EQ(element.fault(), "");
}

TEST_F(PoolEnd, CloseWithWorkersStuckInUserCode) {
  Pool pool;
  for (int i = 0; i < 4; ++i) pool.produce(0, static_cast<std::uint64_t>(i), stuck());
  until_started(pool, 2);
  pool.manager().close();
  EXPECT_EQ(pool.blackboard().server_ended.load(), 1U);
}

TEST_F(PoolEnd, CloseBeforeAnythingHasStarted) {
  for (int i = 0; i < 20; ++i) {
    Pool pool;
    pool.produce(0, 0, Order{});
    pool.manager().close();
  }
}

TEST_F(PoolEnd, CloseWhileElementsAreUnderWay) {
  for (std::uint64_t take = 0; take < 30; ++take) {
    Pool pool;
    for (std::uint64_t i = 0; pool.manager().can_produce(); ++i) pool.produce(0, i, Order{});
    for (std::uint64_t i = 0; i < take % pool.manager().window(); ++i) {
      EXPECT_EQ(pool.next(take % 2 == 0)->fault(), "");
    }
  }
}

TEST_F(PoolEnd, AKilledServerIsAnErrorAndEndsEveryWorker) {
  for (const bool ordered : {true, false}) {
    Pool pool;
    pool.produce(0, 0, stuck());
    pool.produce(0, 1, stuck());
    until_started(pool, 2);
    const std::vector<pid_t> pids = pool.manager().worker_pids();
    ASSERT_EQ(pids.size(), 2U);
    ::kill(pool.server(), SIGKILL);
    try {
      pool.next(ordered);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kBroken);
      EXPECT_NE(std::string(error.what()).find("fork server"), std::string::npos) << error.what();
    }
    EXPECT_FALSE(pool.manager().can_produce());
    pool.manager().close();
    for (const pid_t pid : pids) EXPECT_FALSE(is_running(pid));
  }
}

TEST_F(PoolEnd, TheServerIsKilledAtRandomMoments) {
  std::mt19937 random(5);
  for (int round = 0; round < 60; ++round) {
    Pool pool;
    std::uint64_t taken = 0;
    const auto kill_after = random() % 100;
    EXPECT_THROW(pool.run(
                     0, 1000000, round % 2 == 0, [](std::uint64_t) { return Order{}; },
                     [&](const Element& element) {
                       EXPECT_EQ(element.fault(), "");
                       if (taken++ == kill_after) ::kill(pool.server(), SIGKILL);
                     }),
                 Error);
  }
}

// ------------------------------------------------------------------ the parent dies

// A process that holds a pool and uses it until it is killed. The test is its parent, and the
// foster parent of all it leaves.
template <class Body>
pid_t start_parent(int ready, Body&& body) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  try {
    body([ready](const auto& message) {
      if (::write(ready, &message, sizeof message) != sizeof message) ::_exit(1);
    });
  } catch (const std::exception& error) {
    std::fprintf(stderr, "in the pool's parent: %s\n", error.what());
  }
  ::_exit(1);
}

template <class Message>
Message read_message(int fd) {
  Message message{};
  if (::read(fd, &message, sizeof message) != static_cast<ssize_t>(sizeof message)) {
    throw std::runtime_error("the pool's parent ended");
  }
  return message;
}

std::uint64_t shared_memory_of_the_machine() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("Shmem:", 0) == 0) return std::stoull(line.substr(6)) * 1024;
  }
  return 0;
}

std::set<std::string> names_in_dev_shm() {
  std::set<std::string> names;
  if (!std::filesystem::exists("/dev/shm")) return names;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    const std::string name = entry.path().filename().string();
    if (name.find("stook") != std::string::npos) names.insert(name);
  }
  return names;
}

TEST_F(PoolEnd, AKilledParentLeavesNoProcess) {
  std::mt19937 random(6);
  const auto names = names_in_dev_shm();
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  for (int round = 0; round < 60; ++round) {
    const pid_t parent = start_parent(pipe[1], [round](auto tell) {
      Pool pool;
      tell('r');
      pool.run(
          0, std::numeric_limits<std::uint64_t>::max(), round % 2 == 0,
          [](std::uint64_t position) {
            return Order{position == 40 ? Act::kLeaveChild : Act::kMake, 0, 100000, 0};
          },
          [](const Element&) {});
    });
    read_message<char>(pipe[0]);
    for (auto spin = random() % 3000000; spin > 0; --spin) {
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    ::kill(parent, SIGKILL);
    wait_for_every_process();  // server, workers and what they started: this returns if all ended
  }
  EXPECT_EQ(names_in_dev_shm(), names);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_F(PoolEnd, AKilledParentLeavesNoMemory) {
  constexpr std::uint64_t kHeld = std::uint64_t{256} << 20;
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  // Others use shared memory, too: the least of three rounds is ours.
  std::uint64_t least = kHeld;
  for (int round = 0; round < 3 && least > kHeld / 2; ++round) {
    const std::uint64_t before = shared_memory_of_the_machine();
    const pid_t parent = start_parent(pipe[1], [](auto tell) {
      Pool pool;
      std::vector<Element> kept;
      pool.run(
          0, 64, true, [](std::uint64_t) { return Order{Act::kMake, 0, kHeld / 64, 0}; },
          [&](Element element) { kept.push_back(std::move(element)); });
      for (int i = 0; i < 4; ++i) pool.produce(1, 0, stuck());
      tell('r');
      for (;;) ::pause();
    });
    read_message<char>(pipe[0]);
    ::kill(parent, SIGKILL);
    wait_for_every_process();
    const std::uint64_t after = shared_memory_of_the_machine();
    least = std::min(least, after > before ? after - before : 0);
  }
  EXPECT_LT(least, kHeld / 2) << "bytes of shared memory outlived every process";
  ::close(pipe[0]);
  ::close(pipe[1]);
}

// ------------------------------------------------------------------ the parent forks

TEST_F(PoolEnd, AChildOfTheParentDoesNotKeepTheServerAlive) {
  Pool pool;
  pool.produce(0, 0, stuck());
  until_started(pool, 1);
  const pid_t child = ::fork();  // holds copies of every descriptor
  if (child == 0) {
    for (;;) ::pause();
  }
  pool.manager().close();
  EXPECT_EQ(pool.blackboard().server_ended.load(), 1U) << "the server had to be killed";
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST_F(PoolEnd, AChildOfAKilledParentDoesNotKeepTheServerAlive) {
  struct Pids {
    pid_t server;
    pid_t child;
  };
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  const pid_t parent = start_parent(pipe[1], [](auto tell) {
    Pool pool;
    pool.produce(0, 0, stuck());
    until_started(pool, 1);
    const pid_t child = ::fork();
    if (child != 0) tell(Pids{pool.server(), child});
    for (;;) ::pause();
  });
  const Pids pids = read_message<Pids>(pipe[0]);
  ::kill(parent, SIGKILL);
  ASSERT_EQ(::waitpid(parent, nullptr, 0), parent);
  int status = 0;
  ASSERT_EQ(::waitpid(pids.server, &status, 0), pids.server);
  EXPECT_TRUE(WIFEXITED(status)) << "the server ends by itself, and its workers before it";
  EXPECT_TRUE(is_running(pids.child)) << "what user code forked is its own";
  ::kill(pids.child, SIGKILL);
  ::close(pipe[0]);
  ::close(pipe[1]);
}

TEST_F(PoolEnd, AForkedChildReleasesAndClosesNothing) {
  Pool pool;
  pool.produce(0, 0, Order{});
  pool.produce(0, 1, stuck());
  auto element = pool.next(true);
  ASSERT_TRUE(element);
  const std::uint64_t outstanding = pool.manager().stats().outstanding_bytes;
  const pid_t child = ::fork();
  if (child == 0) {
    if (!pool.manager().in_forked_child()) ::_exit(1);
    if (element->fault() != "") ::_exit(2);  // it may go on reading
    element->release();
    pool.manager().close();
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_FALSE(pool.manager().in_forked_child());
  EXPECT_EQ(pool.manager().stats().outstanding_bytes, outstanding);
  EXPECT_TRUE(is_running(pool.server()));
  EXPECT_EQ(element->fault(), "");
  pool.produce(0, 2, Order{});
  EXPECT_EQ(pool.next(false)->fault(), "") << "the pool goes on";
}

}  // namespace
}  // namespace stook
