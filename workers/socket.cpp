#include "workers/socket.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "shm/error.h"

namespace stook::workers {

namespace {
constexpr std::size_t kMaxFds = 8;
union ControlBuffer {
  cmsghdr align;
  char bytes[CMSG_SPACE(kMaxFds * sizeof(int))];
};
}  // namespace

bool send_message(int socket, const Message& message, std::span<const int> fds) {
  Message copy = message;
  iovec data{&copy, sizeof copy};
  ControlBuffer control{};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.bytes;
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  for (;;) {
    if (::sendmsg(socket, &header, MSG_NOSIGNAL) >= 0) return true;
    if (errno == EINTR) continue;
    if (errno == EPIPE || errno == ECONNRESET) return false;
    shm::throw_system_error("sending to the fork server");
  }
}

ReceiveState receive_message(int socket, Received& received, bool wait) {
  received.fds.clear();
  iovec data{&received.message, sizeof received.message};
  ControlBuffer control{};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof control.bytes;
  ssize_t got = 0;
  do {
    got = ::recvmsg(socket, &header, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return ReceiveState::kNothing;
    if (errno == ECONNRESET) return ReceiveState::kClosed;
    shm::throw_system_error("receiving from the fork server");
  }
  for (cmsghdr* rights = CMSG_FIRSTHDR(&header); rights != nullptr;
       rights = CMSG_NXTHDR(&header, rights)) {
    if (rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(rights) + i * sizeof(int), sizeof(int));
      received.fds.emplace_back(fd);
    }
  }
  if (got == 0) return ReceiveState::kClosed;
  if (got != static_cast<ssize_t>(sizeof received.message)) {
    throw shm::Error(shm::ErrorCode::kBroken,
                     "the fork server sent a message of " + std::to_string(got) + " bytes");
  }
  if ((header.msg_flags & MSG_CTRUNC) != 0) {
    throw shm::Error(shm::ErrorCode::kSystem,
                     "a file descriptor was lost in transit: this process has too many open "
                     "files; raise `ulimit -n`",
                     EMFILE);
  }
  return ReceiveState::kMessage;
}

}  // namespace stook::workers
