// The parent's doorbells to its workers, and what releases of leased blocks pass through.
//
// Outlives the manager for as long as a block is leased. Any thread.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "shm/eventfd.h"
#include "shm/leased_arena.h"
#include "workers/protocol.h"

namespace stook::workers {

class Channel : public shm::ReleaseObserver {
 public:
  Channel(shm::FileDescriptor control_fd, const ControlLayout& layout)
      : control_fd_(std::move(control_fd)),
        memory_(control_fd_.get(), layout.total_bytes(), shm::Access::kReadWrite),
        control_(memory_.data(), layout) {
    for (std::uint32_t worker = 0; worker < layout.worker_count; ++worker) {
      bells_.push_back(shm::create_eventfd(shm::EventWait::kBlocking));
    }
  }

  const Control& control() const noexcept { return control_; }
  int control_fd() const noexcept { return control_fd_.get(); }
  int bell(std::uint32_t worker) const noexcept { return bells_[worker].get(); }

  // Rings up to `most` workers that sleep; true if others were left asleep.
  bool ring_sleepers(std::uint64_t most) {
    return ring_sleepers(most, [](std::uint32_t, std::uint64_t) { return true; });
  }
  // The same of those for which `wanted(worker, reason to sleep)` holds.
  template <class Wanted>
  bool ring_sleepers(std::uint64_t most, Wanted&& wanted) {
    // Guards against a descriptor that close() gave back to the system and that now is something
    // else's. Never taken on the way of an array that wakes nobody.
    const std::lock_guard lock(mutex_);
    if (closed_) return false;
    for (std::uint32_t worker = 0; worker < control_.worker_count(); ++worker) {
      shm::DoorbellWord<>& word = control_.cell(worker).sleep;
      if (most == 0) {
        if (word.reason.load(std::memory_order_relaxed) != shm::kAwake) return true;
        continue;
      }
      if (shm::take_sleeper_after_fence(
              word, [&](std::uint64_t reason) { return wanted(worker, reason); })) {
        shm::ring_eventfd(bells_[worker].get());
        --most;
      }
    }
    return false;
  }

  void on_release(std::uint64_t bytes) noexcept override {
    ControlHeader& header = control_.header();
    header.released_bytes.fetch_add(bytes, std::memory_order_relaxed);
    shm::doorbell_fence<shm::StdAtomics>();
    if (shm::take_wanted(header.memory_wanted)) {
      ring_sleepers(control_.worker_count(),
                    [](std::uint32_t, std::uint64_t reason) { return reason == kSleepsForMemory; });
    }
  }

  // Gives the descriptors back. Leases may live on.
  void close() noexcept {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    for (auto& bell : bells_) bell.reset();
    control_fd_.reset();
  }

 private:
  shm::FileDescriptor control_fd_;
  shm::Mapping memory_;
  Control control_;
  std::mutex mutex_;
  bool closed_ = false;                     // guarded by mutex_
  std::vector<shm::FileDescriptor> bells_;  // guarded by mutex_ where a lease may ring
};

}  // namespace stook::workers
