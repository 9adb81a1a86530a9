// The atomics that every shared protocol in this room is written against.
//
// Ring, return bitmap, doorbell and job ring take the atomics as a template parameter, so that the
// code which runs in production is the very code that the model checker drives through every
// interleaving (tests/cpp/model).
#pragma once

#include <atomic>
#include <cstdint>

namespace stook::shm {

struct StdAtomics {
  template <class T>
  using Atomic = std::atomic<T>;

  static void fence(std::memory_order order) { std::atomic_thread_fence(order); }
};

// Words in memory that two processes map must be lock-free: a lock would live in one of them.
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<std::uint64_t>) == 8);

// Words with different writers lie this far apart. Two cache lines, not one: Intel's adjacent-line
// prefetcher moves pairs (128 bytes), and so does Apple's line size.
inline constexpr std::size_t kIsolation = 128;

}  // namespace stook::shm
