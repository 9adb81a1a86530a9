#include "shm/fork_guard.h"

#include <pthread.h>

#include <atomic>

namespace stook::shm {

namespace {
std::atomic<std::uint64_t> generation{0};
std::atomic<void (*)()> child_hook{nullptr};

void after_fork_in_child() {
  generation.fetch_add(1, std::memory_order_relaxed);
  if (auto* hook = child_hook.load(std::memory_order_relaxed)) hook();
}

// Registered when the library is loaded, so that no fork goes unnoticed.
const int registered = ::pthread_atfork(nullptr, nullptr, after_fork_in_child);
}  // namespace

std::uint64_t fork_generation() noexcept {
  (void)registered;
  return generation.load(std::memory_order_relaxed);
}

void set_child_after_fork(void (*hook)()) noexcept {
  child_hook.store(hook, std::memory_order_relaxed);
}

}  // namespace stook::shm
