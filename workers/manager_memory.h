// Where the memory of a pool's workers is: what the parent can tell of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "shm/atomics.h"
#include "shm/leased_arena.h"
#include "workers/channel.h"

namespace stook::workers {

// Bytes, of one worker index.
struct WorkerMemory {
  // As the worker last told, after an element or while idle; 0 where no worker lives.
  std::uint64_t mapped = 0;  // blocks that have pages: live + idle
  std::uint64_t live = 0;    // blocks that the worker's code or the parent holds
  std::uint64_t idle = 0;    // blocks that are free, and kept for the next array
  // As the kernel counts it now: everything of the arena that costs memory, the result ring too.
  std::uint64_t touched = 0;
  // Leased blocks in the arenas of dead predecessors.
  std::uint64_t retired = 0;
};

// What of each worker's memory is leased, over all its incarnations. Outlives the manager for as
// long as somebody asks.
class LeaseLedger {
 public:
  explicit LeaseLedger(std::uint32_t worker_count) : workers_(worker_count) {}

  // The one thread that receives results.
  void count_lease(std::uint32_t worker, std::uint64_t bytes) noexcept {
    auto& leased = workers_[worker].leased;
    leased.store(leased.load(std::memory_order_relaxed) + bytes, std::memory_order_relaxed);
  }
  // Any thread.
  void count_release(std::uint32_t worker, std::uint64_t bytes) noexcept {
    workers_[worker].released.fetch_add(bytes, std::memory_order_relaxed);
  }
  // Any thread. A release under way may be counted or not.
  std::uint64_t held_bytes(std::uint32_t worker) const noexcept {
    const std::uint64_t released = workers_[worker].released.load(std::memory_order_relaxed);
    const std::uint64_t leased = workers_[worker].leased.load(std::memory_order_relaxed);
    return leased > released ? leased - released : 0;
  }
  std::uint32_t worker_count() const noexcept {
    return static_cast<std::uint32_t>(workers_.size());
  }

 private:
  struct alignas(shm::kIsolation) Totals {
    std::atomic<std::uint64_t> leased{0};
    std::atomic<std::uint64_t> released{0};
  };
  std::vector<Totals> workers_;
};

// Hears of the releases of one worker's blocks, of all its incarnations. Any thread.
class WorkerReleases final : public shm::ReleaseObserver {
 public:
  WorkerReleases(std::uint32_t worker, std::shared_ptr<Channel> channel,
                 std::shared_ptr<LeaseLedger> ledger)
      : worker_(worker), channel_(std::move(channel)), ledger_(std::move(ledger)) {}

  void on_release(std::uint64_t bytes) noexcept override {
    ledger_->count_release(worker_, bytes);
    channel_->Channel::on_release(bytes);
  }

 private:
  std::uint32_t worker_;
  std::shared_ptr<Channel> channel_;
  std::shared_ptr<LeaseLedger> ledger_;
};

}  // namespace stook::workers
