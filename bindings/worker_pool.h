// The parent's pool of workers as Python sees it: the manager, and what the GIL and threads add to
// it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bindings/decoder.h"
#include "bindings/encoder.h"
#include "bindings/python_api.h"
#include "workers/manager.h"

namespace stook::bindings {

// An outcome with everything that the manager would reuse copied out, so that it can be decoded
// without the manager's mutex. Owns the leases of `blocks` until they are decoded.
struct TakenOutcome {
  workers::Outcome outcome;
  std::vector<workers::BlockRef> blocks;
  std::vector<std::byte> payload;
  bool copy_out = false;
};

class WorkerPool : public BlockSource {
 public:
  WorkerPool(const workers::ManagerOptions& options, int socket, int server,
             std::uint64_t min_shared_bytes, py::object functions);

  // Ends every process; wakes a thread that waits for an element. Any thread; requires GIL.
  void close();
  bool is_open() const noexcept { return open_.load(std::memory_order_acquire); }

  // BlockSource for arguments: the parent's own arena.
  std::optional<Destination> allocate(std::uint64_t bytes) override;
  std::optional<shm::Block> find(const void*) override { return std::nullopt; }
  std::uint64_t offset_of(const void*) override { return 0; }
  void discard(const workers::BlockRef& block) override;

  workers::Manager manager;
  // Guards `manager`, and is held without the GIL while somebody waits for an element. Never held
  // while Python code runs.
  std::mutex mutex;
  py::object functions;  // stook._parent: what the parent does in Python
  Encoder encoder;       // GIL
  Decoder decoder;       // GIL

  // Which iterator has the pool: a later pass takes it over. GIL.
  std::uint64_t pass = 0;
  // Totals over all passes. GIL.
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
  std::uint64_t moved = 0;
  std::uint64_t copied = 0;
  std::uint64_t errors = 0;

 private:
  std::atomic<bool> open_{true};
};

}  // namespace stook::bindings
