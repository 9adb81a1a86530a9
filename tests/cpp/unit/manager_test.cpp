// The manager without workers: what it refuses, and how it takes a fork server that is not there.
// With workers: tests/cpp/process.
#include "workers/manager.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <string>

#include "shm/error.h"
#include "tests/cpp/unit/child_process.h"

namespace stook::workers {
namespace {

using shm::Error;
using shm::ErrorCode;

// A process in the place of the fork server that reads nothing and runs `body`.
struct Impostor {
  template <class Body>
  explicit Impostor(Body&& body) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
    socket.reset(ends[0]);
    pid = ::fork();
    if (pid == 0) {
      ::close(ends[0]);
      body(ends[1]);
      ::_exit(0);
    }
    ::close(ends[1]);
  }

  shm::FileDescriptor socket;
  pid_t pid = 0;
};

void sleep_for_ever(int) {
  for (;;) ::pause();
}

Manager::State poll_until_decided(Manager& manager) {
  for (;;) {
    const Manager::State state = manager.poll(true);
    if (state != Manager::State::kPending) return state;
    manager.wait(true, nullptr);
  }
}

TEST(Manager, ANumberOfWorkersThatCannotBeIsRefused) {
  for (const std::uint32_t count : {0U, kMaxWorkers + 1}) {
    Impostor server(sleep_for_ever);
    ManagerOptions options;
    options.worker_count = count;
    try {
      Manager manager(options, std::move(server.socket), server.pid);
      ADD_FAILURE() << "no error for " << count;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find(std::to_string(count)), std::string::npos);
    }
    ::kill(server.pid, SIGKILL);
    ::waitpid(server.pid, nullptr, 0);
  }
}

TEST(Manager, JobsWithoutAnOrderHaveNeitherTimeOutNorLosses) {
  for (const bool timeout : {true, false}) {
    Impostor server(sleep_for_ever);
    ManagerOptions options;
    options.any_order = true;
    options.report_losses = !timeout;
    if (timeout) options.element_timeout = std::chrono::seconds(1);
    try {
      Manager manager(options, std::move(server.socket), server.pid);
      ADD_FAILURE() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument);
    }
    ::kill(server.pid, SIGKILL);
    ::waitpid(server.pid, nullptr, 0);
  }
}

TEST(Manager, TheWindowBoundsWhatIsUnderWay) {
  Impostor server(sleep_for_ever);
  ManagerOptions options;
  options.worker_count = 2;
  options.per_worker_buffer_size = 3;
  options.memory_limit = 1 << 30;
  Manager manager(options, std::move(server.socket), server.pid);
  EXPECT_EQ(manager.window(), 8U);
  EXPECT_EQ(manager.poll(true), Manager::State::kIdle);
  std::uint64_t produced = 0;
  while (manager.can_produce()) {
    manager.produce({});
    ++produced;
  }
  EXPECT_EQ(produced, 8U);
  EXPECT_EQ(manager.under_way(), 8U);
  EXPECT_EQ(manager.poll(true), Manager::State::kPending);
  manager.abandon();
  EXPECT_EQ(manager.under_way(), 0U);
  EXPECT_EQ(manager.poll(true), Manager::State::kIdle);
  EXPECT_TRUE(manager.can_produce());
}

TEST(Manager, AServerThatEndsIsAnErrorNotAHang) {
  Impostor server([](int) {});
  ManagerOptions options;
  options.memory_limit = 1 << 30;
  try {
    Manager manager(options, std::move(server.socket), server.pid);
    // The window may already be open or not: the server ends when it likes.
    if (manager.can_produce()) manager.produce({});
    poll_until_decided(manager);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBroken);
    EXPECT_NE(std::string(error.what()).find("fork server"), std::string::npos) << error.what();
  }
  ::waitpid(server.pid, nullptr, 0);  // where the constructor threw
}

TEST(Manager, AServerThatSendsNonsenseIsAnErrorNotACrash) {
  Impostor server([](int socket) {
    ::send(socket, "nonsense", 8, 0);
    sleep_for_ever(socket);
  });
  ManagerOptions options;
  options.memory_limit = 1 << 30;
  Manager manager(options, std::move(server.socket), server.pid);
  manager.produce({});
  try {
    poll_until_decided(manager);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBroken);
  }
}

TEST(Manager, MessagesAboutNobodyAreIgnored) {
  Impostor server([](int socket) {
    send_message(socket, {MessageType::kExited, 17, 0, 1, 0, 0});
    send_message(socket, {MessageType::kExited, 0, 99, 1, 0, 0});
    send_message(socket, {MessageType::kStart, 0, 0, 1, 0, 0});
    send_message(socket, {MessageType::kFailed, 0, 0, -1, EAGAIN, 0});
    sleep_for_ever(socket);
  });
  ManagerOptions options;
  options.memory_limit = 1 << 30;
  Manager manager(options, std::move(server.socket), server.pid);
  manager.produce({});
  try {
    poll_until_decided(manager);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("could not be started"), std::string::npos)
        << error.what();
  }
  EXPECT_EQ(manager.stats().restarts, 0U);
}

TEST(Manager, ClosesTwiceAndEndsAServerThatIgnoresIt) {
  Impostor server(sleep_for_ever);
  const pid_t pid = server.pid;
  Manager manager(ManagerOptions{}, std::move(server.socket), pid);
  EXPECT_TRUE(manager.is_open());
  manager.close();
  EXPECT_FALSE(manager.is_open());
  EXPECT_EQ(::kill(pid, 0), -1) << "the server is still there";
  manager.close();
}

TEST(Manager, ArgumentsOfAnySizeTravelAndTheirMemoryIsGivenBack) {
  Impostor server(sleep_for_ever);
  ManagerOptions options;
  options.per_worker_buffer_size = 7;
  options.memory_limit = 1 << 30;
  Manager manager(options, std::move(server.socket), server.pid);
  const std::vector<std::byte> large(100000, std::byte{3});
  for (int round = 0; round < 50; ++round) {
    while (manager.can_produce()) {
      JobOrder order;
      order.payload = large;
      manager.produce(order);
    }
    EXPECT_EQ(manager.under_way(), 8U);
    manager.abandon();
  }
  const auto block = manager.allocate_arguments(100000);
  ASSERT_TRUE(block);
  EXPECT_LT(block->ref.id, 16U) << "arguments of earlier jobs were kept";
  manager.free_arguments({&block->ref, 1});
  EXPECT_FALSE(manager.allocate_arguments(manager.arena_bytes() * 2));
}

}  // namespace
}  // namespace stook::workers
