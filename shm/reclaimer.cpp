#include "shm/reclaimer.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "shm/error.h"

namespace stook::shm {

namespace {

// Blocks every signal in the calling thread while it lives: threads started meanwhile inherit that.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

// Written by any thread, read by reclaimer_stats; nothing is published by them.
std::atomic<std::uint64_t> done_by_callers{0};
std::atomic<std::uint64_t> failures{0};

class Reclaimer {
 public:
  void configure(std::uint32_t threads, std::uint32_t max_outstanding);
  bool submit(Reclaimable* thing) noexcept;
  bool flush(std::chrono::milliseconds most) noexcept;
  void finish(std::chrono::milliseconds most) noexcept;
  ReclaimerStats stats() noexcept;

 private:
  void run(std::uint32_t index) noexcept;
  // These three with mutex_ held.
  Reclaimable* pop() noexcept;
  bool is_idle() const noexcept { return queued_ + in_work_ == 0; }
  bool wait_until_idle(std::unique_lock<std::mutex>& lock, std::chrono::milliseconds most);

  // Held by configure and finish from end to end, so that only one of them starts, joins or
  // detaches threads. Taken before mutex_.
  std::mutex threads_mutex_;
  std::vector<std::thread> threads_;

  // Everything below; held for a few instructions, never while a thing is reclaimed.
  std::mutex mutex_;
  std::condition_variable work_;  // a thing was queued, or wanted_ fell
  std::condition_variable idle_;  // nothing is outstanding
  std::vector<Reclaimable*> ring_;
  std::size_t first_ = 0;   // the oldest thing in ring_
  std::size_t queued_ = 0;  // how many
  std::uint32_t in_work_ = 0;
  std::uint32_t sleeping_ = 0;          // threads in work_.wait
  std::uint32_t waiting_for_idle_ = 0;  // threads in idle_.wait
  std::uint32_t wanted_ = 0;            // a thread of this index or a higher one ends
  std::uint32_t max_outstanding_ = 0;
  std::uint64_t done_by_threads_ = 0;
  bool finished_ = false;
};

void Reclaimer::configure(std::uint32_t threads, std::uint32_t max_outstanding) {
  const std::lock_guard config(threads_mutex_);
  if (finished_) {
    throw Error(ErrorCode::kInvalidArgument,
                "the process is ending: its reclaim threads cannot be started again");
  }
  if (threads == 0) max_outstanding = 0;
  std::vector<Reclaimable*> ring;
  const auto before = static_cast<std::uint32_t>(threads_.size());
  try {
    // A smaller queue still has to hold what is in the larger one.
    ring.resize(std::max<std::size_t>(ring_.size(), max_outstanding));
    threads_.reserve(threads);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kSystem, "no memory for the queue of the reclaim threads", ENOMEM);
  }
  {
    // Before there are threads, since a new one ends if it is not wanted.
    const std::lock_guard lock(mutex_);
    wanted_ = std::max(before, threads);
  }
  try {
    const SignalsBlocked blocked;
    for (std::uint32_t index = before; index < threads; ++index) {
      threads_.emplace_back([this, index] { run(index); });
    }
  } catch (const std::system_error& error) {
    {
      const std::lock_guard lock(mutex_);
      wanted_ = before;
    }
    work_.notify_all();
    for (std::size_t i = before; i < threads_.size(); ++i) threads_[i].join();
    threads_.resize(before);
    throw Error(ErrorCode::kSystem,
                "starting " + std::to_string(threads) +
                    " reclaim threads: " + std::strerror(error.code().value()) +
                    "; ask for fewer, or raise the limit of processes (ulimit -u)",
                error.code().value());
  }
  {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = 0; i < queued_; ++i) ring[i] = ring_[(first_ + i) % ring_.size()];
    ring_.swap(ring);
    first_ = 0;
    max_outstanding_ = max_outstanding;
    wanted_ = threads;
  }
  if (threads < before) {
    work_.notify_all();
    for (std::size_t i = threads; i < threads_.size(); ++i) threads_[i].join();
    threads_.resize(threads);
  }
}

bool Reclaimer::submit(Reclaimable* thing) noexcept {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    if (wanted_ == 0 || queued_ + in_work_ >= max_outstanding_) return false;
    ring_[(first_ + queued_) % ring_.size()] = thing;
    ++queued_;
    wake = sleeping_ > 0;
  }
  if (wake) work_.notify_one();
  return true;
}

Reclaimable* Reclaimer::pop() noexcept {
  Reclaimable* thing = ring_[first_];
  first_ = (first_ + 1) % ring_.size();
  --queued_;
  return thing;
}

void Reclaimer::run(std::uint32_t index) noexcept {
  ::pthread_setname_np(::pthread_self(), "stook-reclaim");
  // Woken on the core of whoever submits, an ordinary thread would take that core from him for as
  // long as the system takes memory back; a batch thread waits for a core. If refused, it is
  // slower.
  const sched_param parameters{};
  ::sched_setscheduler(0, SCHED_BATCH, &parameters);
  std::unique_lock lock(mutex_);
  for (;;) {
    // The last threads to go leave nothing behind; with others there, those go on.
    if (queued_ == 0 || (wanted_ != 0 && index >= wanted_)) {
      if (index >= wanted_) return;
      ++sleeping_;
      work_.wait(lock);
      --sleeping_;
      continue;
    }
    Reclaimable* thing = pop();
    ++in_work_;
    lock.unlock();
    thing->reclaim();
    lock.lock();
    --in_work_;
    ++done_by_threads_;
    if (is_idle() && waiting_for_idle_ > 0) idle_.notify_all();
  }
}

bool Reclaimer::wait_until_idle(std::unique_lock<std::mutex>& lock,
                                std::chrono::milliseconds most) {
  // More than a year is for ever; the clock must not overflow.
  const auto deadline = std::chrono::steady_clock::now() +
                        std::clamp(most, std::chrono::milliseconds{0},
                                   std::chrono::milliseconds{std::chrono::hours{24 * 365}});
  ++waiting_for_idle_;
  const bool idle = idle_.wait_until(lock, deadline, [this] { return is_idle(); });
  --waiting_for_idle_;
  return idle;
}

bool Reclaimer::flush(std::chrono::milliseconds most) noexcept {
  std::unique_lock lock(mutex_);
  return wait_until_idle(lock, most);
}

void Reclaimer::finish(std::chrono::milliseconds most) noexcept {
  const std::lock_guard config(threads_mutex_);
  finished_ = true;
  // Detached: one of them may hang in a call of the system, and the end must not wait for it.
  for (std::thread& thread : threads_) thread.detach();
  threads_.clear();
  std::unique_lock lock(mutex_);
  wanted_ = 0;  // callers reclaim from now on, and threads end when the queue is empty
  work_.notify_all();
  wait_until_idle(lock, most);
  while (queued_ > 0) {
    Reclaimable* thing = pop();
    lock.unlock();
    thing->reclaim_at_exit();
    lock.lock();
  }
}

ReclaimerStats Reclaimer::stats() noexcept {
  const std::lock_guard lock(mutex_);
  ReclaimerStats stats;
  stats.threads = wanted_;
  stats.max_outstanding = max_outstanding_;
  stats.outstanding = queued_ + in_work_;
  stats.done_by_threads = done_by_threads_;
  return stats;
}

// Made by the first configure, never destroyed: destructors of static objects submit too. Written
// by whoever makes it (release) and in a forked child, read by everybody (acquire). The child
// leaks the parent's: its mutex may be locked by a thread that the child does not have.
std::atomic<Reclaimer*> current{nullptr};

void forget_in_child() {
  current.store(nullptr, std::memory_order_relaxed);
  done_by_callers.store(0, std::memory_order_relaxed);
  failures.store(0, std::memory_order_relaxed);
}

// Registered when the library is loaded, so that no fork goes unnoticed.
const int registered = ::pthread_atfork(nullptr, nullptr, forget_in_child);

Reclaimer& make_current() {
  Reclaimer* reclaimer = current.load(std::memory_order_acquire);
  if (reclaimer != nullptr) return *reclaimer;
  auto* fresh = new (std::nothrow) Reclaimer();
  if (fresh == nullptr) {
    throw Error(ErrorCode::kSystem, "no memory for the reclaim threads", ENOMEM);
  }
  if (current.compare_exchange_strong(reclaimer, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *reclaimer;
}

}  // namespace

void configure_reclaimer(std::uint32_t threads, std::uint32_t max_outstanding) {
  (void)registered;
  if (threads > kMostReclaimThreads) {
    throw Error(ErrorCode::kInvalidArgument,
                "num_threads is " + std::to_string(threads) + "; at most " +
                    std::to_string(kMostReclaimThreads) + " reclaim threads are possible");
  }
  if (threads > 0 && (max_outstanding == 0 || max_outstanding > kMostOutstanding)) {
    throw Error(ErrorCode::kInvalidArgument,
                "max_outstanding_requests is " + std::to_string(max_outstanding) +
                    "; it must lie between 1 and " + std::to_string(kMostOutstanding));
  }
  if (threads == 0 && current.load(std::memory_order_acquire) == nullptr) return;
  make_current().configure(threads, max_outstanding);
}

void submit_reclaim(Reclaimable* thing) noexcept {
  Reclaimer* reclaimer = current.load(std::memory_order_acquire);
  if (reclaimer != nullptr && reclaimer->submit(thing)) return;
  thing->reclaim();
  done_by_callers.fetch_add(1, std::memory_order_relaxed);
}

bool reclaimer_has_threads() noexcept {
  Reclaimer* reclaimer = current.load(std::memory_order_acquire);
  return reclaimer != nullptr && reclaimer->stats().threads > 0;
}

bool flush_reclaimer(std::chrono::milliseconds most) noexcept {
  Reclaimer* reclaimer = current.load(std::memory_order_acquire);
  return reclaimer == nullptr || reclaimer->flush(most);
}

void finish_reclaimer(std::chrono::milliseconds most) noexcept {
  Reclaimer* reclaimer = current.load(std::memory_order_acquire);
  if (reclaimer != nullptr) reclaimer->finish(most);
}

void count_reclaim_failure(const char* what, int system_errno) noexcept {
  if (failures.fetch_add(1, std::memory_order_relaxed) != 0) return;
  char text[128] = "";
  const char* reason = ::strerror_r(system_errno, text, sizeof(text));  // GNU's
  char line[512];
  const int length = std::snprintf(line, sizeof(line),
                                   "stook: giving shared memory back: %.300s: %.100s "
                                   "(later failures are only counted)\n",
                                   what, reason);
  // One write, so that lines of other threads do not mix in. Where it fails, nobody can be told.
  if (length > 0) {
    [[maybe_unused]] const ssize_t written =
        ::write(STDERR_FILENO, line, std::min(static_cast<std::size_t>(length), sizeof(line) - 1));
  }
}

ReclaimerStats reclaimer_stats() noexcept {
  Reclaimer* reclaimer = current.load(std::memory_order_acquire);
  ReclaimerStats stats;
  if (reclaimer != nullptr) stats = reclaimer->stats();
  stats.done_by_callers = done_by_callers.load(std::memory_order_relaxed);
  stats.failures = failures.load(std::memory_order_relaxed);
  return stats;
}

}  // namespace stook::shm
