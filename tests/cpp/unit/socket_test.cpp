#include "workers/socket.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <filesystem>
#include <iterator>
#include <string>
#include <vector>

#include "shm/error.h"
#include "shm/eventfd.h"
#include "tests/cpp/unit/child_process.h"

namespace stook::workers {
namespace {

using shm::Error;
using shm::ErrorCode;

const Message kMessage{MessageType::kSpawned, 3, 9, 4321, -7, 0};

int open_descriptors() {
  const std::filesystem::directory_iterator entries("/proc/self/fd");
  return static_cast<int>(std::distance(begin(entries), end(entries)));
}

class SocketTest : public ::testing::Test {
 protected:
  SocketTest() {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
    here_.reset(ends[0]);
    there_.reset(ends[1]);
  }

  shm::FileDescriptor here_;
  shm::FileDescriptor there_;
  Received received_{};
};

TEST_F(SocketTest, AMessageArrivesAsItWasSent) {
  ASSERT_TRUE(send_message(here_.get(), kMessage));
  ASSERT_EQ(receive_message(there_.get(), received_, true), ReceiveState::kMessage);
  EXPECT_EQ(received_.message.type, MessageType::kSpawned);
  EXPECT_EQ(received_.message.worker, 3U);
  EXPECT_EQ(received_.message.incarnation, 9U);
  EXPECT_EQ(received_.message.pid, 4321);
  EXPECT_EQ(received_.message.status, -7);
  EXPECT_TRUE(received_.fds.empty());
}

TEST_F(SocketTest, MessagesKeepTheirBordersAndOrder) {
  for (std::uint32_t worker = 0; worker < 5; ++worker) {
    ASSERT_TRUE(send_message(here_.get(), {MessageType::kExited, worker, 0, 0, 0, 0}));
  }
  for (std::uint32_t worker = 0; worker < 5; ++worker) {
    ASSERT_EQ(receive_message(there_.get(), received_, false), ReceiveState::kMessage);
    EXPECT_EQ(received_.message.worker, worker);
  }
  EXPECT_EQ(receive_message(there_.get(), received_, false), ReceiveState::kNothing);
}

TEST_F(SocketTest, DescriptorsArriveInOrderAndAreNotInherited) {
  const shm::FileDescriptor bells[] = {shm::create_eventfd(shm::EventWait::kNonBlocking),
                                       shm::create_eventfd(shm::EventWait::kNonBlocking),
                                       shm::create_eventfd(shm::EventWait::kNonBlocking)};
  const int fds[] = {bells[0].get(), bells[1].get(), bells[2].get()};
  ASSERT_TRUE(send_message(here_.get(), kMessage, fds));
  ASSERT_EQ(receive_message(there_.get(), received_, true), ReceiveState::kMessage);
  ASSERT_EQ(received_.fds.size(), 3U);
  for (std::uint64_t i = 0; i < 3; ++i) {
    const std::uint64_t rings = i + 1;
    ASSERT_EQ(::write(received_.fds[i].get(), &rings, sizeof rings), 8);
    std::uint64_t heard = 0;
    ASSERT_EQ(::read(bells[i].get(), &heard, sizeof heard), 8);
    EXPECT_EQ(heard, rings);
    EXPECT_NE(::fcntl(received_.fds[i].get(), F_GETFD) & FD_CLOEXEC, 0);
  }
}

TEST_F(SocketTest, TheNextMessageClosesTheDescriptorsOfTheOneBefore) {
  const int before = open_descriptors();
  const shm::FileDescriptor bell = shm::create_eventfd(shm::EventWait::kNonBlocking);
  const int fds[] = {bell.get()};
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(send_message(here_.get(), kMessage, fds));
    ASSERT_EQ(receive_message(there_.get(), received_, true), ReceiveState::kMessage);
  }
  EXPECT_EQ(open_descriptors(), before + 2);
}

TEST_F(SocketTest, AnEndThatIsGoneIsNoError) {
  ASSERT_TRUE(send_message(here_.get(), kMessage));
  here_.reset();
  EXPECT_EQ(receive_message(there_.get(), received_, true), ReceiveState::kMessage)
      << "what was sent before is still read";
  EXPECT_EQ(receive_message(there_.get(), received_, true), ReceiveState::kClosed);
  EXPECT_FALSE(send_message(there_.get(), kMessage)) << "and no SIGPIPE";
}

TEST_F(SocketTest, AMessageOfAnotherSizeIsRefused) {
  ASSERT_EQ(::send(here_.get(), "short", 5, 0), 5);
  try {
    receive_message(there_.get(), received_, true);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kBroken);
    EXPECT_NE(std::string(error.what()).find("5 bytes"), std::string::npos) << error.what();
  }
}

TEST_F(SocketTest, ADescriptorThatIsNoSocketIsAnError) {
  const shm::FileDescriptor bell = shm::create_eventfd(shm::EventWait::kNonBlocking);
  EXPECT_THROW(send_message(bell.get(), kMessage), Error);
  EXPECT_THROW(receive_message(bell.get(), received_, false), Error);
}

TEST_F(SocketTest, DescriptorsLostForWantOfRoomAreAnErrorThatSaysSo) {
  const shm::FileDescriptor bell = shm::create_eventfd(shm::EventWait::kNonBlocking);
  const int fds[] = {bell.get(), bell.get()};
  ASSERT_TRUE(send_message(here_.get(), kMessage, fds));
  EXPECT_EQ(exit_code_of_child([&] {
              // Room for one more descriptor, not for two.
              const int next = ::dup(0);
              const rlimit limit{static_cast<rlim_t>(next), static_cast<rlim_t>(next)};
              ::close(next);
              shm::FileDescriptor last(::dup(0));
              last.reset();
              // The undefined-behaviour sanitizer opens a pipe when it first sees a type's objects.
              try {
                throw Error(shm::ErrorCode::kSystem, "no room for that pipe later", EMFILE);
              } catch (const Error& error) {
                if (error.system_errno() != EMFILE) return 5;
              }
              if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) return 1;
              try {
                Received received{};
                receive_message(there_.get(), received, true);
                return 2;
              } catch (const Error& error) {
                if (error.system_errno() != EMFILE) return 3;
                if (std::string(error.what()).find("ulimit -n") == std::string::npos) return 4;
              }
              return 0;
            }),
            0);
}

TEST_F(SocketTest, ASignalDoesNotLoseAMessage) {
  struct sigaction action{};
  action.sa_handler = [](int) {};  // no SA_RESTART
  struct sigaction before{};
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  const pid_t waiter = ::getpid();
  const pid_t sender = ::fork();
  if (sender == 0) {
    for (int i = 0; i < 50; ++i) ::kill(waiter, SIGUSR1);
    send_message(here_.get(), kMessage);
    ::_exit(0);
  }
  EXPECT_EQ(receive_message(there_.get(), received_, true), ReceiveState::kMessage);
  EXPECT_EQ(received_.message.pid, 4321);
  int status = 0;
  while (::waitpid(sender, &status, 0) < 0 && errno == EINTR) {
  }
  ::sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace
}  // namespace stook::workers
