// Tells a process from children that user code forked off it.
//
// Objects that belong to one process remember the generation in which they were made and compare:
// one load, where getpid() is a system call.
#pragma once

#include <cstdint>

namespace stook::shm {

// 0 in the first process, one more in each forked child.
std::uint64_t fork_generation() noexcept;

// Called in a forked child, before anything else runs there. Async-signal-safe functions only.
// At most one; the worker room uses it to make the arena private.
void set_child_after_fork(void (*hook)()) noexcept;

}  // namespace stook::shm
