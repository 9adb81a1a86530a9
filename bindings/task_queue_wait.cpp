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
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <mutex>

#include "bindings/errors.h"
#include "bindings/task_queue.h"
#include "shm/error.h"

namespace stook::bindings {

using workers::Manager;

bool TaskQueue::notify() {
  if (PyList_GET_SIZE(waiting_.get()) == 0) return true;
  const OwnedRef done(PyObject_CallNoArgs(notify_.get()));
  if (!done && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) == 0)
    PyErr_WriteUnraisable(notify_.get());
  return PyErr_Occurred() == nullptr;
}

PyObject* TaskQueue::pump(PyObject* done, double seconds) {
  const unsigned long me = PyThread_get_thread_ident();
  const bool nested = pumper_ == me;
  if (pumper_ != 0 && !nested) Py_RETURN_NONE;
  pumper_ = me;
  bool is_done = false;
  const bool went_well = pump_until(done, seconds, is_done);
  woken_ = true;  // whom this is nested in looks again
  // What was delivered before a failure may be another thread's, and whom this is nested in need
  // not fail of it.
  if (nested && !went_well) {
    const OwnedRef error = take_exception();
    if (!notify()) PyErr_Clear();
    raise_exception(error.get());
  }
  if (!nested) {
    pumper_ = 0;
    // Whoever waits takes over, whatever happened here.
    PyObject* error = went_well ? nullptr : take_exception().release();
    if (!notify()) {
      if (error == nullptr) return nullptr;
      PyErr_Clear();
    }
    if (error != nullptr) {
      const OwnedRef owned(error);
      raise_exception(error);
    }
  }
  return went_well ? PyBool_FromLong(is_done ? 1 : 0) : nullptr;
}

bool TaskQueue::pump_until(PyObject* done, double seconds, bool& is_done) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  for (;;) {
    woken_ = false;
    const OwnedRef answer(PyObject_CallNoArgs(done));
    const int truth = answer ? PyObject_IsTrue(answer.get()) : -1;
    if (truth < 0) return false;
    is_done = truth != 0;
    if (is_done || broken_) return true;
    const int delivered = deliver();
    if (delivered < 0) return false;
    if (delivered > 0) {
      if (!notify()) return false;
      continue;
    }
    if (broken_ || !pool_->is_open()) return true;
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
}

bool TaskQueue::sleep(double seconds) {
  constexpr double kLongest = 1e9;
  const bool bounded = seconds >= 0 && seconds < kLongest;
  const auto until = std::chrono::steady_clock::now() +
                     std::chrono::nanoseconds(bounded ? static_cast<std::int64_t>(seconds * 1e9)
                                                      : std::int64_t{0});
  // The first sleep is short, so that a short one costs no changes of the signal mask.
  bool long_wait = false;
  for (;;) {
    sigset_t before;
    if (long_wait) {
      // A signal that arrives between the look at Python's flags and the sleep must end the sleep.
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_SETMASK, &all, &before);
      if (PyErr_CheckSignals() != 0) {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        return false;
      }
    }
    // After the signal handlers, which may have delivered what is waited for.
    if (woken_ || !pool_->is_open() || !failed_.empty()) {
      if (long_wait) pthread_sigmask(SIG_SETMASK, &before, nullptr);
      return true;
    }
    Manager::WaitEnd end = Manager::WaitEnd::kProgress;
    bool out_of_time = false;
    bool failed = false;
    shm::Error failure(shm::ErrorCode::kBroken, "");
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
          const Manager::Waking waking = Manager::sleep(plan, long_wait ? &before : nullptr);
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
    if (long_wait) pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (failed) {
      set_python_error(failure);
      set_broken();
      return false;
    }
    switch (end) {
      case Manager::WaitEnd::kProgress:
        return true;
      case Manager::WaitEnd::kInterrupted:
        return PyErr_CheckSignals() == 0;
      case Manager::WaitEnd::kSideChannel: {
        const OwnedRef done(
            PyObject_CallMethod(pool_->functions.ptr(), "drain_side_channel", nullptr));
        if (!done && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) == 0)
          PyErr_WriteUnraisable(pool_->functions.ptr());
        return PyErr_Occurred() == nullptr;
      }
      case Manager::WaitEnd::kTimeOut:
        if (out_of_time) return PyErr_CheckSignals() == 0;
        long_wait = true;
    }
  }
}

void TaskQueue::wake() {
  if (pumper_ == 0) return;
  // Both: the bell ends a sleep; a look at the manager's news on the way there takes the bell away.
  woken_ = true;
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
