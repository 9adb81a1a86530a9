// TaskQueue: delivering until something is done, and sleeping in between.
//
// No wake-up is lost, because:
// 1. One thread at a time is in pump(), and that thread alone takes results, takes events from the
//    manager's epoll (whose bell is edge-triggered: who takes an edge takes it from all others) and
//    sets the parent's doorbell word to awake. Another thread's arm() only announces a sleep. So
//    while the pumper sleeps the word says so, or a worker has cleared it and rung a bell whose
//    edge waits for him.
// 2. What he waits for may also come true without a result. Who sees to that calls wake(), which
//    sets woken_ under the GIL and then rings. woken_ is cleared before each look at `done`, and
//    looked at after the last Python code (a signal handler's, which may deliver in a nested pump
//    and so take the bell's edge) that runs before the sleep. From there on the edge stays.
// 3. Who leaves pump() tells all in `waiting`, and those look whether somebody pumps after they
//    have put themselves there, all under the GIL. An event loop that hears it delivers and arms;
//    one that armed while there was a pumper hears of his leaving.
//
// A signal handler that interrupts the pumper, who then is the main thread, may wait for what
// another thread is to deliver. So the place of the pumper can be lost, wherever his Python code
// runs: he gives it up where he looks for signals himself, and where a handler comes elsewhere
// (while a sink runs, or a result is unpickled), those who wait find out after a while and have
// him pass it on (pass_on). After any Python code he looks whether the place is his, takes it again
// if it is free, and else leaves. What he has delivered meanwhile he tells who has his place.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>

#include "bindings/errors.h"
#include "bindings/signal_handlers.h"
#include "bindings/task_queue.h"
#include "shm/error.h"

namespace stook::bindings {

using workers::Manager;

namespace {

// The longest sleep of the main thread, and of who waits for it to send. A signal whose handler has
// run in another thread, or before the sleep, does not end it.
constexpr std::int64_t kLookNanoseconds = 200'000'000;

}  // namespace

bool TaskQueue::notify() {
  if (PyList_GET_SIZE(waiting_.get()) == 0) return true;
  const OwnedRef done(PyObject_CallNoArgs(notify_.get()));
  if (!done && !handler_raised()) PyErr_WriteUnraisable(notify_.get());
  return PyErr_Occurred() == nullptr;
}

bool TaskQueue::still_pumps(unsigned long thread) {
  if (pumper_ == 0) pumper_ = thread;
  return pumper_ == thread;
}

void TaskQueue::pass_on() {
  if (!is_pumped_by_main() || asleep_) return;
  pumper_ = 0;
  set_mains_aside();
}

// A signal handler has interrupted all that the main thread delivers.
void TaskQueue::set_mains_aside() {
  for (Delivery& delivery : deliveries_) {
    if (delivery.thread != main_thread_ || delivery.is_set_aside) continue;
    delivery.is_set_aside = true;
    ++set_aside_;
  }
}

PyObject* TaskQueue::pump(PyObject* done, double seconds) {
  const unsigned long me = PyThread_get_thread_ident();
  const bool nested = pumper_ == me;
  if (pumper_ != 0 && !nested) Py_RETURN_NONE;
  pumper_ = me;
  if (nested && me == main_thread_ && handler_runs()) set_mains_aside();
  bool is_done = false;
  const bool went_well = pump_until(done, seconds, is_done);
  OwnedRef error = went_well ? OwnedRef() : take_exception();
  const bool lost = pumper_ != me;
  woken_ = true;  // whom this is nested in looks again
  if (lost) {
    wake();
  } else if (!nested) {
    pumper_ = 0;
  }
  // Whoever waits takes over, whatever happened here. What was delivered before a failure may be
  // another thread's, and whom this is nested in need not fail of it.
  if ((lost || !nested || error) && !notify()) {
    if (!error) return nullptr;
    PyErr_Clear();
  }
  if (error) {
    raise_exception(error.get());
    return nullptr;
  }
  if (lost && !is_done) Py_RETURN_NONE;
  return PyBool_FromLong(is_done ? 1 : 0);
}

bool TaskQueue::pump_until(PyObject* done, double seconds, bool& is_done) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  const unsigned long me = pumper_;
  while (still_pumps(me)) {
    woken_ = false;
    const OwnedRef answer(PyObject_CallNoArgs(done));
    const int truth = answer ? PyObject_IsTrue(answer.get()) : -1;
    if (truth < 0) return false;
    is_done = truth != 0;
    if (is_done || broken_ || !still_pumps(me)) return true;
    const int delivered = deliver();
    if (delivered < 0) return false;
    if (delivered > 0) {
      if (!notify()) return false;
      continue;
    }
    if (broken_ || !pool_->is_open() || !still_pumps(me)) return true;
    double left = -1;
    if (seconds >= 0) {
      left = seconds - std::chrono::duration<double>(Clock::now() - begin).count();
      if (left <= 0) return true;
    }
    if (!sleep(left)) {
      // A sleep that the system refuses is the pool's end; else it was a signal handler.
      if (PyErr_Occurred() != nullptr) return false;
      return true;
    }
  }
  return true;
}

// Runs signal handlers, in the place of nobody: others pump meanwhile. `came`: a signal did, so
// those who wait are told.
bool TaskQueue::check_signals(bool came) {
  const unsigned long me = pumper_;
  if (me != main_thread_) return true;
  pumper_ = 0;
  const bool went_well = (!came || notify()) && PyErr_CheckSignals() == 0;
  if (pumper_ == 0) pumper_ = me;
  return went_well;
}

// Somebody else sends what is pending, and may be kept from it.
bool TaskQueue::others_feed() const {
  return !pending_.empty() && !feeders_.empty() && feeders_.back() != pumper_;
}

bool TaskQueue::sleep(double seconds) {
  constexpr double kLongest = 1e9;
  const bool bounded = seconds >= 0 && seconds < kLongest;
  const unsigned long me = pumper_;
  const auto until = std::chrono::steady_clock::now() +
                     std::chrono::nanoseconds(bounded ? static_cast<std::int64_t>(seconds * 1e9)
                                                      : std::int64_t{0});
  // The first sleep is short: so it has no limit to look at beside its own.
  bool long_wait = false;
  for (;;) {
    if (long_wait && !check_signals(false)) return false;
    // After the signal handlers, which may have delivered what is waited for.
    if (!still_pumps(me) || woken_ || !pool_->is_open() || !failed_.empty()) return true;
    Manager::WaitEnd end = Manager::WaitEnd::kProgress;
    bool out_of_time = false;
    bool failed = false;
    shm::Error failure(shm::ErrorCode::kBroken, "");
    const bool looks = long_wait && (me == main_thread_ || others_feed());
    asleep_ = true;
    {
      const WithoutGil without_gil;
      const std::lock_guard sleeping(sleep_mutex_);
      try {
        Manager& manager = pool_->manager;
        Manager::Sleep plan;
        {
          const std::lock_guard lock(pool_->mutex);
          if (pool_->is_open()) plan = manager.begin_sleep(false, long_wait);
        }
        if (plan.needed) {
          if (looks && (!plan.bounded || plan.nanoseconds > kLookNanoseconds)) {
            plan.bounded = true;
            plan.nanoseconds = kLookNanoseconds;
          }
          if (bounded) {
            const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(
                until - std::chrono::steady_clock::now());
            const std::int64_t most = std::max<std::int64_t>(left.count(), 0);
            if (!plan.bounded || most < plan.nanoseconds) {
              plan.bounded = true;
              plan.nanoseconds = most;
              out_of_time = true;
            }
          }
          const Manager::Waking waking = Manager::sleep(plan, nullptr);
          const std::lock_guard lock(pool_->mutex);
          end = manager.end_sleep(waking);
        } else {
          const std::lock_guard lock(pool_->mutex);
          if (manager.is_open()) end = manager.end_sleep({});
        }
      } catch (const shm::Error& error) {
        failure = error;
        failed = true;
      }
    }
    asleep_ = false;
    if (failed) {
      set_python_error(failure);
      set_broken();
      return false;
    }
    switch (end) {
      case Manager::WaitEnd::kProgress:
        return true;
      case Manager::WaitEnd::kInterrupted:
        return check_signals(true);
      case Manager::WaitEnd::kSideChannel: {
        const OwnedRef done(
            PyObject_CallMethod(pool_->functions.ptr(), "drain_side_channel", nullptr));
        if (!done && !handler_raised()) PyErr_WriteUnraisable(pool_->functions.ptr());
        return PyErr_Occurred() == nullptr;
      }
      case Manager::WaitEnd::kTimeOut:
        if (out_of_time) return check_signals(false);
        // To send in the place of who was found to be interrupted, see feed().
        if (looks && me != main_thread_) return true;
        long_wait = true;
    }
  }
}

void TaskQueue::wake() {
  // Both: the bell ends a sleep; a look at the manager's news on the way there takes the bell away.
  woken_ = true;  // also where the pumper has given his place up for a signal handler
  if (pumper_ == 0) return;
  if (pumper_ != PyThread_get_thread_ident() && pool_->is_open()) pool_->manager.wake();
}

bool TaskQueue::arm() {
  if (!pool_->is_open() || !failed_.empty()) return false;
  const LockWithGil lock(pool_->mutex);
  if (!pool_->manager.is_open()) return false;
  armed_ = true;
  return pool_->manager.begin_sleep(false, true, false).needed;
}

}  // namespace stook::bindings
