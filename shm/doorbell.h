// Sleeping and waking across processes without a system call while both sides are busy.
//
// A doorbell is a word in shared memory plus an eventfd. The word says whether its owner sleeps,
// and what for: 0 means awake. It is set, never counted: a killed sleeper leaves at worst one
// needless ring. The eventfd is pollable, so a doorbell fits into epoll and asyncio alike.
//
//   sleeper: word = reason; full fence; look once more; sleep on the eventfd
//   waker:   publish;       full fence; if word asks for this: word = 0, ring
//
// Of the two fences at least one comes second, and whoever comes second sees the other's store:
// either the sleeper sees what was published, or the waker sees the sleeper. With either fence
// missing a wake-up is lost (tests/cpp/model/doorbell_test.cpp shows both).
#pragma once

#include <cstdint>

#include "shm/atomics.h"

namespace stook::shm {

inline constexpr std::uint64_t kAwake = 0;

template <class Atomics = StdAtomics>
struct DoorbellWord {
  // Written by the sleeper (reason, or 0 on waking by itself) and by wakers (0).
  alignas(kIsolation) typename Atomics::template Atomic<std::uint64_t> reason;
};

// Sleeper: announces the sleep. The caller must look once more for what it waits for, after this
// and before it sleeps, and call `wake_up` if it is there.
template <class Atomics>
void announce_sleep(DoorbellWord<Atomics>& word, std::uint64_t reason) {
  word.reason.store(reason, std::memory_order_relaxed);
  // SYNC(doorbell): pairs with the fence in take_sleeper.
  Atomics::fence(std::memory_order_seq_cst);
}

// The same for one of many sleepers, where the waker looks at one shared flag before it looks at
// every sleeper's word. The flag is set after the reason, so that a waker which clears the flag
// sees the sleeper; were it set before, a waker could clear it, find nobody, and never look again.
template <class Atomics, class Flag>
void announce_sleep(DoorbellWord<Atomics>& word, std::uint64_t reason, Flag& wanted) {
  word.reason.store(reason, std::memory_order_relaxed);
  // SYNC(doorbell.wanted): released here, acquired in take_wanted. An exchange, because a plain
  // store would end the release sequence of another sleeper's: who then clears the flag might not
  // see that one asleep.
  wanted.exchange(1, std::memory_order_release);
  // SYNC(doorbell): pairs with doorbell_fence.
  Atomics::fence(std::memory_order_seq_cst);
}

// Waker, after publishing and doorbell_fence: true if somebody may sleep; the flag is cleared, and
// the caller must look at every sleeper's word.
template <class Flag>
bool take_wanted(Flag& wanted) {
  if (wanted.load(std::memory_order_relaxed) == 0) return false;
  // SYNC(doorbell.wanted): released in announce_sleep, acquired here.
  return wanted.exchange(0, std::memory_order_acquire) != 0;
}

// Sleeper: awake again, whoever woke it.
template <class Atomics>
void wake_up(DoorbellWord<Atomics>& word) {
  word.reason.store(kAwake, std::memory_order_relaxed);
}

// Waker, after publishing: true if the owner sleeps for a reason that `wanted(reason)` accepts. The
// caller then rings the eventfd; of several wakers one gets true.
//
// Relaxed loads suffice after the fence: nothing is read through this word.
template <class Atomics, class Wanted>
bool take_sleeper_after_fence(DoorbellWord<Atomics>& word, Wanted&& wanted) {
  std::uint64_t reason = word.reason.load(std::memory_order_relaxed);
  while (reason != kAwake && wanted(reason)) {
    if (word.reason.compare_exchange_weak(reason, kAwake, std::memory_order_relaxed,
                                          std::memory_order_relaxed)) {
      return true;
    }
  }
  return false;
}

template <class Atomics>
void doorbell_fence() {
  // SYNC(doorbell): pairs with the fence in announce_sleep.
  Atomics::fence(std::memory_order_seq_cst);
}

template <class Atomics, class Wanted>
bool take_sleeper(DoorbellWord<Atomics>& word, Wanted&& wanted) {
  doorbell_fence<Atomics>();
  return take_sleeper_after_fence(word, wanted);
}

}  // namespace stook::shm
