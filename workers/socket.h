// Messages with file descriptors over a SOCK_SEQPACKET socket pair.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "shm/file_descriptor.h"
#include "workers/protocol.h"

namespace stook::workers {

struct Received {
  Message message;
  std::vector<shm::FileDescriptor> fds;
};

// False if the other end is gone. Throws Error(kSystem) for anything else.
bool send_message(int socket, const Message& message, std::span<const int> fds = {});

// Nothing if the other end is gone. Blocks until a message is there, unless the socket does not.
enum class ReceiveState { kMessage, kClosed, kNothing };
ReceiveState receive_message(int socket, Received& received, bool wait);

}  // namespace stook::workers
