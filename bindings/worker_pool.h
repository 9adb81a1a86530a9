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
#include "bindings/held_segments.h"
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
  std::uint64_t items = 0;  // of its job, where a loader counts them
};

class WorkerPool : public BlockSource {
 public:
  WorkerPool(const workers::ManagerOptions& options, int socket, int server,
             std::uint64_t min_shared_bytes, py::object functions);

  // Ends every process; wakes a thread that waits for an element. Any thread; requires GIL.
  void close() {
    close([] {});
  }
  // `wait_for_sleepers` is called without the GIL, after who sleeps was woken and before anything
  // that he may look at is gone.
  template <class Wait>
  void close(Wait&& wait_for_sleepers) {
    if (!open_.exchange(false, std::memory_order_acq_rel)) return;
    if (manager.in_forked_child()) {
      // Its copy of the mutex may be locked for ever, by a thread that is not here.
      manager.close();
      return;
    }
    held.clear();
    manager.wake();
    const WithoutGil without_gil;
    wait_for_sleepers();
    const std::lock_guard lock(mutex);
    manager.close();
  }
  bool is_open() const noexcept { return open_.load(std::memory_order_acquire); }

  // Locks `mutex` at once, also while a thread sleeps with it in Manager::wait(): that one is
  // woken. Requires GIL.
  class LockAwake {
   public:
    explicit LockAwake(WorkerPool& pool) : pool_(pool) {
      if (pool_.mutex.try_lock()) return;
      pool_.lock_wanted_.fetch_add(1, std::memory_order_seq_cst);
      // Under the GIL, as close() takes it back: the manager's doorbell is still there.
      if (pool_.is_open()) pool_.manager.wake();
      PyThreadState* state = PyEval_SaveThread();
      pool_.mutex.lock();
      pool_.lock_wanted_.fetch_sub(1, std::memory_order_relaxed);
      restore_thread(state, [this] { pool_.mutex.unlock(); });
    }
    ~LockAwake() { pool_.mutex.unlock(); }
    LockAwake(const LockAwake&) = delete;
    LockAwake& operator=(const LockAwake&) = delete;

   private:
    WorkerPool& pool_;
  };
  // Under the mutex: somebody waits for it, so it must not be slept with. Who counts himself in
  // after this look also rings after it, and ends the sleep.
  bool lock_is_wanted() const noexcept { return lock_wanted_.load(std::memory_order_seq_cst) != 0; }

  // BlockSource for arguments: the parent's own arena.
  std::optional<Destination> allocate(std::uint64_t bytes) override;
  std::optional<shm::Block> find(const void*) override { return std::nullopt; }
  std::uint64_t offset_of(const void*) override { return 0; }
  void discard(const workers::BlockRef& block) override;

  std::unique_ptr<Encoder> make_encoder();

  // Workers are started one by one, when there are more tasks than workers.
  const bool starts_on_demand;
  workers::Manager manager;
  // Guards `manager`, and is held without the GIL while somebody waits for an element. Never held
  // while Python code runs.
  std::mutex mutex;
  py::object functions;  // stook._parent: what the parent does in Python
  Encoder encoder;       // GIL. One encode() at a time; who interrupts it makes his own
  Decoder decoder;       // GIL
  HeldSegments held;     // of items that workers may not have opened yet. GIL

  // Which iterator has the pool: a later pass takes it over, and closing one leaves it to none.
  // Written under the GIL; read under the mutex alone before a sleep.
  std::atomic<std::uint64_t> pass{0};
  // Totals over all passes. GIL.
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
  std::uint64_t moved = 0;
  std::uint64_t copied = 0;
  std::uint64_t errors = 0;

 private:
  std::atomic<bool> open_{true};
  std::atomic<int> lock_wanted_{0};
};

}  // namespace stook::bindings
