// Manager: when to sleep, for how many elements at once, and when to ring sleeping workers.
//
// A ring costs a system call and a context switch, far more than a small element. While elements
// arrive in quick succession, both sides therefore sleep for several at a time: the parent asks to
// be rung for an element some way ahead (with a short time-out, so that a slow one is not waited
// for in vain), and idle workers are rung once half of the window is free. When elements are slow,
// each is rung for at once. Neither changes what is delivered, or in which order.
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <string>

#include "shm/error.h"
#include "shm/eventfd.h"
#include "workers/manager.h"

namespace stook::workers {

namespace {

using Clock = std::chrono::steady_clock;

// What one sleep should bring, in microseconds of elements at their recent pace.
constexpr double kSleepWorth = 50.0;
// How long a sleep for several elements may last before one for the next element follows.
constexpr long kCoalescedNanoseconds = 200'000;
// The longest sleep of a caller that has not blocked signals: one that arrives just before the
// sleep is seen after it.
constexpr long kUnmaskedNanoseconds = 5'000'000;
// Idle workers are rung at most this often while less than half of the window is free.
constexpr std::chrono::microseconds kRingPause{100};

int epoll_wait_precise(int epoll, epoll_event* events, int count, const timespec* timeout,
                       const sigset_t* mask) {
  return static_cast<int>(
      ::syscall(SYS_epoll_pwait2, epoll, events, count, timeout, mask, _NSIG / 8));
}

}  // namespace

void Manager::ring_for_jobs(bool now) {
  ControlHeader& header = channel_->control().header();
  shm::doorbell_fence<shm::StdAtomics>();
  if (header.job_wanted.load(std::memory_order_relaxed) == 0) return;
  constexpr std::uint64_t kJobMask = (std::uint64_t{1} << 48) - 1;
  const std::uint64_t lowest = header.jobs.hint.load(std::memory_order_relaxed) & kJobMask;
  // With jobs for one worker alone the lowest one may wait for a busy one: then this says nothing,
  // and to count them is a look at every slot.
  const std::uint64_t unclaimed = produced_ - std::min(produced_, lowest);
  if (unclaimed == 0) return;
  if (!now && (bound_ != 0 || unclaimed < std::max<std::uint64_t>(1, window_ / 2))) {
    const auto time = Clock::now();
    if (time - last_ring_ < kRingPause) return;
    last_ring_ = time;
  }
  if (!shm::take_wanted(header.job_wanted)) return;
  const bool others_sleep =
      bound_ != 0 ? ring_for_bound_jobs(lowest) : channel_->ring_sleepers(unclaimed);
  if (others_sleep) header.job_wanted.exchange(1, std::memory_order_release);
}

// Rings those that a job waits for, and as many of the others as there are jobs for anybody.
bool Manager::ring_for_bound_jobs(std::uint64_t lowest) {
  has_job_.assign(has_job_.size(), false);
  std::uint64_t for_anybody = 0;
  for (std::uint64_t number = std::max(lowest, delivered_); number < produced_; ++number) {
    const std::uint64_t word =
        channel_->control().job(number).claim.load(std::memory_order_relaxed);
    if (!waits(word, number)) continue;
    const std::uint64_t claimants = record(number).claimants;
    if (claimants == kUnclaimed) {
      ++for_anybody;
    } else {
      has_job_[(claimants & ~kBound) - 1] = true;
    }
  }
  channel_->ring_sleepers(has_job_.size(), [this](std::uint32_t worker, std::uint64_t) -> bool {
    return has_job_[worker];
  });
  return channel_->ring_sleepers(for_anybody);
}

Manager::WaitEnd Manager::wait(bool ordered, const sigset_t* unblocked) {
  const Sleep plan = begin_sleep(ordered, unblocked != nullptr);
  return end_sleep(plan.needed ? sleep(plan, unblocked) : Waking{});
}

Manager::Sleep Manager::begin_sleep(bool ordered, bool signals_blocked, bool may_coalesce) {
  ControlHeader& header = channel_->control().header();
  ring_for_jobs(true);
  if (timer_.is_open()) arm_timer();

  std::uint64_t ahead = 1;
  if (may_coalesce && coalesce_ && element_us_ < kSleepWorth) {
    ahead = std::clamp<std::uint64_t>(static_cast<std::uint64_t>(kSleepWorth / element_us_), 1,
                                      std::max<std::uint64_t>(1, window_ / 2));
  }
  // Jobs in no order: the oldest ones are taken to be the first `in_flight_` before the last.
  const std::uint64_t oldest = options_.any_order ? produced_ - in_flight_ : delivered_;
  // With nothing under way (the caller then sleeps for a moment only) any number will do.
  std::uint64_t target = std::max(std::min(oldest + ahead, produced_), oldest + 1) - 1;
  const bool coalesced = target > oldest;
  if (options_.any_order && !coalesced) target = 0;  // any
  const bool exact = ordered && !coalesced;
  shm::announce_sleep(header.parent, parent_sleeps_until(target, exact));

  Sleep plan;
  plan.epoll = epoll_.get();
  plan.needed = !awaited_is_ready(ordered) && broken_.empty() && !startup_error_;
  plan.bounded = coalesced || !signals_blocked;
  plan.nanoseconds = coalesced ? kCoalescedNanoseconds : kUnmaskedNanoseconds;
  return plan;
}

Manager::Waking Manager::sleep(const Sleep& plan, const sigset_t* unblocked) noexcept {
  const timespec timeout{plan.nanoseconds / 1'000'000'000, plan.nanoseconds % 1'000'000'000};
  epoll_event events[4];
  Waking waking;
  waking.count =
      epoll_wait_precise(plan.epoll, events, 4, plan.bounded ? &timeout : nullptr, unblocked);
  if (waking.count < 0) waking.error = errno;
  for (int i = 0; i < waking.count; ++i) waking.events |= events[i].data.u32;
  waking.timed_out = waking.count == 0;
  return waking;
}

Manager::WaitEnd Manager::end_sleep(const Waking& waking) {
  WaitEnd end = WaitEnd::kProgress;
  if (waking.timed_out) end = WaitEnd::kTimeOut;
  if (waking.count < 0) {
    shm::wake_up(channel_->control().header().parent);
    if (waking.error != EINTR) {
      throw shm::Error(shm::ErrorCode::kSystem,
                       std::string("epoll_pwait2: ") + std::strerror(waking.error), waking.error);
    }
    end = WaitEnd::kInterrupted;
  }
  if ((waking.events & kServerEvent) != 0) handle_messages();
  if ((waking.events & kSideEvent) != 0) end = WaitEnd::kSideChannel;
  polls_since_news_ = 0;
  const bool slept = waking.count != 0 || waking.timed_out;
  if (slept) coalesce_ = end != WaitEnd::kTimeOut;
  shm::wake_up(channel_->control().header().parent);

  // The pace: from the end of one sleep to the end of the next, over the elements taken between.
  const auto now = Clock::now();
  if (taken_since_wake_ != 0) {
    const double us = std::chrono::duration<double, std::micro>(now - last_wake_).count();
    const double pace = us / static_cast<double>(taken_since_wake_);
    element_us_ = element_us_ > 1e6 ? pace : 0.75 * element_us_ + 0.25 * pace;
    coalesce_ = true;
  }
  taken_since_wake_ = 0;
  last_wake_ = now;
  return end;
}

// The timer, and not the sleep's own bound, so that whoever waits for descriptor() wakes too. It is
// set for the earliest moment at which an item can be overdue. What is begun later is overdue
// later, so it is set again only after it rang.
void Manager::arm_timer() {
  const std::uint64_t now = monotonic_nanoseconds();
  if (timer_at_ > now) return;
  timer_at_ = std::max(first_overdue_at(now), now + 1);
  itimerspec time{};
  time.it_value.tv_sec = static_cast<time_t>(timer_at_ / 1'000'000'000);
  time.it_value.tv_nsec = static_cast<long>(timer_at_ % 1'000'000'000);
  if (::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &time, nullptr) != 0) {
    shm::throw_system_error("timerfd_settime");
  }
}

void Manager::look_for_news() {
  polls_since_news_ = 0;
  const Sleep glance{true, true, 0, epoll_.get()};
  const Waking waking = sleep(glance, nullptr);
  if (waking.count < 0 && waking.error != EINTR) {
    throw shm::Error(shm::ErrorCode::kSystem,
                     std::string("epoll_pwait2: ") + std::strerror(waking.error), waking.error);
  }
  if ((waking.events & kServerEvent) != 0) handle_messages();
  side_channel_news_ |= (waking.events & kSideEvent) != 0;
}

void Manager::wake() noexcept { shm::ring_eventfd(bell_.get()); }

void Manager::watch_side_channel(int fd) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u32 = kSideEvent;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    shm::throw_system_error("epoll_ctl");
  }
}

}  // namespace stook::workers
