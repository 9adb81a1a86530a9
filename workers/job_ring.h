// Jobs from one producer (the parent) to many claimers (the workers), dealt by demand; a job may
// also be bound to one claimer, for whom it waits.
//
// Jobs are numbered 0, 1, 2, ... for the life of a manager and lie in slot `job & (capacity - 1)`.
// A worker claims the lowest unclaimed job that is for it by compare-exchange on that job's own
// slot, and the word it writes there records who claimed: when a worker dies, the parent reads from
// the slots what it held. Nothing is locked, so nothing can die holding a lock.
#pragma once

#include <cstdint>
#include <optional>

#include "shm/atomics.h"

namespace stook::workers {

// A claim word: the job's number in the upper 48 bits; who claimed it, or may claim it, in the 16
// below. The number makes a late compare-exchange on a reused slot fail; and whom a job is for is
// in the word that is exchanged, so that it cannot be read of another job than the one claimed.
inline constexpr std::uint64_t kUnclaimed = 0;   // for anybody
inline constexpr std::uint64_t kBound = 0x8000;  // | claimer_of(worker): unclaimed, for that one
inline constexpr std::uint64_t kCancelled = 0xFFFF;  // the parent took it back: nobody runs it
inline constexpr std::uint32_t kMaxWorkers = 0x7FFE;

constexpr std::uint64_t claim_word(std::uint64_t job, std::uint64_t claimer) {
  return job << 16 | claimer;
}
constexpr std::uint64_t claim_job(std::uint64_t word) { return word >> 16; }
constexpr std::uint64_t claim_claimer(std::uint64_t word) { return word & 0xFFFF; }
// Worker 0 writes 1, and so on: 0 is nobody.
constexpr std::uint64_t claimer_of(std::uint32_t worker) { return std::uint64_t{worker} + 1; }
// What stands in a claim word instead of a claimer while `worker` alone may claim.
constexpr std::uint64_t bound_to(std::uint32_t worker) { return kBound | claimer_of(worker); }
// Nobody has claimed it yet, and it was not taken back.
constexpr bool is_unclaimed(std::uint64_t word) {
  const std::uint64_t claimer = claim_claimer(word);
  return claimer == kUnclaimed || (claimer > kBound && claimer != kCancelled);
}
// The word is this job's, and it waits for who claims it.
constexpr bool waits(std::uint64_t word, std::uint64_t job) {
  return claim_job(word) == job && is_unclaimed(word);
}

template <class Atomics = shm::StdAtomics>
struct JobRingWords {
  // Jobs below this exist. Written by the parent (release), read by workers (acquire).
  alignas(shm::kIsolation) typename Atomics::template Atomic<std::uint64_t> produced;
  // Where to look for the lowest unclaimed job: generation << 48 | job. Advanced by claimers, but
  // never past an unclaimed job, whoever it is for; put back (with the next generation) by the
  // parent when it gives a claimed job free again.
  alignas(shm::kIsolation) typename Atomics::template Atomic<std::uint64_t> hint;
};

// `ClaimSlot` has a member `Atomic<uint64_t> claim`.

// Parent: makes job `job` visible, for anybody or (`claimants`: bound_to(worker)) for one worker.
// The slot's contents must have been written before; the slot's earlier job must be finished.
template <class ClaimSlot, class Atomics>
void produce_job(JobRingWords<Atomics>& words, ClaimSlot& slot, std::uint64_t job,
                 std::uint64_t claimants = kUnclaimed) {
  // Relaxed: claimers that know `job` exists read it after the acquire below; others compare with
  // another job's number and fail.
  slot.claim.store(claim_word(job, claimants), std::memory_order_relaxed);
  // SYNC(jobs.produced): released here, acquired in claim_lowest; publishes slot and contents.
  words.produced.store(job + 1, std::memory_order_release);
}

// Worker: claims the lowest unclaimed job that is for anybody or for it, if `may_run(job)` holds.
// Only the lowest is asked for: a job that may not run yet is never overtaken by a later one. Jobs
// that are bound to others are passed over.
template <class ClaimSlot, class Atomics, class MayRun>
std::optional<std::uint64_t> claim_lowest(JobRingWords<Atomics>& words, ClaimSlot* slots,
                                          std::uint64_t capacity, std::uint32_t worker,
                                          MayRun&& may_run) {
  constexpr std::uint64_t kJobMask = (std::uint64_t{1} << 48) - 1;
  for (;;) {
    // SYNC(jobs.hint): released in unclaim_job, acquired here, so that a claimer which starts below
    // a job given free also sees that it is free.
    std::uint64_t hint = words.hint.load(std::memory_order_acquire);
    // SYNC(jobs.produced): released in produce_job, acquired here.
    const std::uint64_t produced = words.produced.load(std::memory_order_acquire);
    std::uint64_t job = hint & kJobMask;
    std::uint64_t passed_over = kJobMask;  // the lowest one that waits for another worker
    bool lost_race = false;
    for (; job < produced; ++job) {
      ClaimSlot& slot = slots[job & (capacity - 1)];
      std::uint64_t word = slot.claim.load(std::memory_order_relaxed);
      if (word != claim_word(job, kUnclaimed) && word != claim_word(job, bound_to(worker))) {
        if (passed_over == kJobMask && waits(word, job)) passed_over = job;
        continue;
      }
      if (!may_run(job)) return std::nullopt;
      // Acquire: a job that was given free again carries the parent's release. What the claimer
      // writes is read by the parent only after the kernel said that the claimer is dead.
      if (slot.claim.compare_exchange_strong(word, claim_word(job, claimer_of(worker)),
                                             std::memory_order_acquire,
                                             std::memory_order_relaxed)) {
        // Everything below was seen claimed under this generation. If the parent gave some of it
        // free meanwhile, the generation moved on and this does nothing.
        const std::uint64_t lowest = passed_over < job ? passed_over : job + 1;
        words.hint.compare_exchange_strong(hint, (hint & ~kJobMask) | lowest,
                                           std::memory_order_relaxed, std::memory_order_relaxed);
        return job;
      }
      lost_race = true;
    }
    if (!lost_race) return std::nullopt;
  }
}

// Parent: takes an unclaimed job back so that nobody runs it. False if a worker was faster.
template <class ClaimSlot>
bool cancel_job(ClaimSlot& slot, std::uint64_t job) {
  std::uint64_t word = slot.claim.load(std::memory_order_relaxed);
  return waits(word, job) &&
         slot.claim.compare_exchange_strong(word, claim_word(job, kCancelled),
                                            std::memory_order_relaxed, std::memory_order_relaxed);
}

// Parent: gives a job free again whose claimer is dead, for `claimants` as in produce_job.
template <class ClaimSlot, class Atomics>
void unclaim_job(JobRingWords<Atomics>& words, ClaimSlot& slot, std::uint64_t job,
                 std::uint64_t claimants = kUnclaimed) {
  constexpr std::uint64_t kJobMask = (std::uint64_t{1} << 48) - 1;
  slot.claim.store(claim_word(job, claimants), std::memory_order_release);
  std::uint64_t hint = words.hint.load(std::memory_order_relaxed);
  for (;;) {
    const std::uint64_t generation = (hint >> 48) + 1;
    const std::uint64_t lowest = (hint & kJobMask) < job ? (hint & kJobMask) : job;
    // SYNC(jobs.hint): released here, acquired in claim_lowest.
    if (words.hint.compare_exchange_weak(hint, generation << 48 | lowest, std::memory_order_release,
                                         std::memory_order_relaxed)) {
      return;
    }
  }
}

}  // namespace stook::workers
