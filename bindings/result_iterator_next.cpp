// The iterator over results: the next one, waited for or looked for.
//
// Per element: deal as many jobs as the window allows, look whether the awaited result is there,
// sleep without the GIL if not, decode. No Python code runs while the manager's mutex is held.
#include <csignal>
#include <exception>
#include <optional>
#include <utility>

#include "bindings/errors.h"
#include "bindings/result_iterator.h"
#include "shm/error.h"

namespace stook::bindings {
namespace {

using workers::Manager;

// Of jobs with nothing to deliver, one after another, without letting other threads run.
constexpr unsigned kSkipsPerTurn = 64;

// Sleeps until there may be something new. False with an error set.
bool wait(ResultIterator* self, bool& long_wait) {
  WorkerPool& pool = *self->pool;
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
  Manager::WaitEnd end = Manager::WaitEnd::kProgress;
  std::exception_ptr failure;
  {
    const WithoutGil without_gil;
    const std::lock_guard lock(pool.mutex);
    try {
      if (has_pool(self) && !pool.lock_is_wanted()) {
        end = pool.manager.wait(self->ordered, long_wait ? &before : nullptr);
      }
    } catch (const std::exception&) {
      failure = std::current_exception();
    }
  }
  if (long_wait) pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failure) {
    // Such as no descriptors for a worker's successor: nobody would do the dead one's work.
    self->finished = true;
    pool.close();
    std::rethrow_exception(failure);
  }
  if (end == Manager::WaitEnd::kTimeOut) long_wait = true;
  if (end == Manager::WaitEnd::kSideChannel) {
    const OwnedRef done(PyObject_CallMethod(pool.functions.ptr(), "drain_side_channel", nullptr));
    if (!done) return false;
  }
  return end == Manager::WaitEnd::kProgress || PyErr_CheckSignals() == 0;
}

// The iterator's scratch for the time of one call; a second thread gets its own.
class Scratch {
 public:
  explicit Scratch(ResultIterator* iterator)
      : iterator_(iterator), taken_(std::exchange(iterator->spare, nullptr)) {
    if (taken_ == nullptr) taken_ = new TakenOutcome();
  }
  ~Scratch() {
    if (iterator_->spare == nullptr) {
      iterator_->spare = taken_;
    } else {
      delete taken_;
    }
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  TakenOutcome& operator*() { return *taken_; }

 private:
  ResultIterator* iterator_;
  TakenOutcome* taken_;
};

// What poll() answers when there is no element.
struct Absent {
  PyObject* later;  // the descriptor tells when to look again
  PyObject* soon;   // nothing tells
};

// The mutex, for who may sleep with it later or, with `at_once`, for who must not wait for another
// who sleeps with it.
class PoolLock {
 public:
  PoolLock(WorkerPool& pool, bool at_once) {
    if (at_once) {
      awake_.emplace(pool);
    } else {
      lock_.emplace(pool.mutex);
    }
  }

 private:
  std::optional<LockWithGil> lock_;
  std::optional<WorkerPool::LockAwake> awake_;
};

// Under the mutex: takes the news that the descriptor told of. True if the side channel has some.
bool disarm(ResultIterator* self) {
  if (!std::exchange(self->armed, false)) return false;
  Manager& manager = self->pool->manager;
  const Manager::Sleep glance{true, true, 0, manager.descriptor()};
  return manager.end_sleep(Manager::sleep(glance, nullptr)) == Manager::WaitEnd::kSideChannel;
}

// The next element; nullptr with an error set, or without one at the end of the pass. `absent`:
// what to return rather than wait.
PyObject* advance(ResultIterator* self, const Absent* absent) {
  WorkerPool& pool = *self->pool;
  Scratch taken(self);
  bool asked = false;  // for a job from Python
  bool long_wait = false;
  unsigned skipped = 0;
  for (;;) {
    // Also by another thread, while this one waited.
    if (self->finished) return nullptr;
    if (!check_usable(self)) return nullptr;
    if (self->too_many != nullptr) return end_with_too_many(self);
    Manager::State state = Manager::State::kPending;
    bool may_produce = false;
    bool has_news = false;
    bool must_wait = false;
    try {
      const PoolLock lock(pool, absent != nullptr);
      if (!has_pool(self)) continue;
      has_news = disarm(self);
      if (self->plan != nullptr) produce_from_plan(self);
      state = pool.manager.poll(self->ordered);
      has_news = pool.manager.take_side_channel_news() || has_news;
      may_produce = pool.manager.can_produce() && !self->producing;
      // With jobs from Python, one is asked for before each element, so that the window stays full.
      // A source that waits for its next item holds back what is ready: it is the consumer's thread
      // that asks it, since a source need not stand being asked by another.
      if (state == Manager::State::kReady &&
          (self->plan != nullptr || self->jobs_done || !may_produce || asked)) {
        take(self, *taken);
        if (self->plan != nullptr) produce_from_plan(self);
        may_produce = false;
      }
      const bool asks = self->plan == nullptr && !self->jobs_done && may_produce;
      if (absent != nullptr && state == Manager::State::kPending && !asks) {
        self->armed = true;
        must_wait = pool.manager.begin_sleep(self->ordered, true, false).needed;
      }
    } catch (const shm::Error& error) {
      self->finished = true;
      set_python_error(error);
      pool.close();
      return nullptr;
    }
    if (has_news) {
      const OwnedRef done(PyObject_CallMethod(pool.functions.ptr(), "drain_side_channel", nullptr));
      // What a handler of log records raises must not cost the element that is in hand.
      if (!done) PyErr_WriteUnraisable(pool.functions.ptr());
    }
    if (self->plan == nullptr && !self->jobs_done && may_produce) {
      if (!produce_from_python(self)) return nullptr;
      asked = true;
      continue;  // another thread may have taken what was ready
    }
    if (state == Manager::State::kReady) {
      PyObject* element = deliver(self, *taken);
      if (element != nullptr || PyErr_Occurred() != nullptr || self->finished) return element;
      // A pass may have nothing but skipped jobs, for as long as it likes.
      if (PyErr_CheckSignals() != 0) return nullptr;
      if (++skipped % kSkipsPerTurn == 0) {
        const WithoutGil others_turn;
      }
      asked = false;
      long_wait = false;
      continue;
    }
    if (state == Manager::State::kIdle && self->jobs_done) {
      self->finished = true;
      // Log records that came with the last elements.
      const OwnedRef done(PyObject_CallMethod(pool.functions.ptr(), "drain_side_channel", nullptr));
      if (!done) return nullptr;
      if (self->source_error != nullptr) {
        const OwnedRef error(std::exchange(self->source_error, nullptr));
        raise_exception(error.get());
      }
      return nullptr;
    }
    // Nothing is under way when another thread asks for a job, or a slot is not free yet: nobody
    // would ring.
    if (state == Manager::State::kIdle) {
      if (absent != nullptr) return Py_NewRef(absent->soon);
      long_wait = false;
    }
    if (absent != nullptr) {
      if (must_wait) return Py_NewRef(absent->later);
      continue;
    }
    if (!wait(self, long_wait)) return nullptr;
  }
}

}  // namespace

bool check_process(const WorkerPool& pool) {
  if (!pool.manager.in_forked_child()) return true;
  set_stook_error("StookError",
                  "this loader belongs to the process that made it, and this is a forked child of "
                  "it; make a loader here");
  return false;
}

bool check_usable(ResultIterator* self) {
  if (!check_process(*self->pool)) return false;
  if (!has_pool(self)) {
    set_stook_error("StookError",
                    "this iterator is closed: it was closed, or its loader was closed or iterated "
                    "again; iterate the loader again");
    return false;
  }
  return true;
}

PyObject* iterator_next(PyObject* object) {
  ResultIterator* self = as_iterator(object);
  PyObject* element = catching([&] { return advance(self, nullptr); });
  if (self->watchers != 0) {
    // What this thread took, and the news that it slept for, are not told to others again.
    const OwnedRef error = take_exception();
    const OwnedRef told(PyObject_CallMethod(object, "_tell_waiters", nullptr));
    if (!told) PyErr_WriteUnraisable(object);
    if (error) raise_exception(error.get());
  }
  return element;
}

PyObject* iterator_poll(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "poll(later, soon)");
    return nullptr;
  }
  const Absent absent{arguments[0], arguments[1]};
  PyObject* element = catching([&] { return advance(as_iterator(object), &absent); });
  if (element == nullptr && PyErr_Occurred() == nullptr) PyErr_SetNone(PyExc_StopIteration);
  return element;
}

PyObject* iterator_fileno(PyObject* object, PyObject*) {
  ResultIterator* self = as_iterator(object);
  if (!check_usable(self)) return nullptr;
  return PyLong_FromLong(self->pool->manager.descriptor());
}

}  // namespace stook::bindings
