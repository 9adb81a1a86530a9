// The iterator over results: waiting, and the type.
//
// Per element: deal as many jobs as the window allows, look whether the awaited result is there,
// sleep without the GIL if not, decode. No Python code runs while the manager's mutex is held.
#include "bindings/result_iterator.h"

#include <csignal>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "bindings/errors.h"
#include "bindings/register.h"
#include "shm/error.h"

namespace stook::bindings {
namespace {

using workers::Manager;

// Of jobs with nothing to deliver, one after another, without letting other threads run.
constexpr unsigned kSkipsPerTurn = 64;

ResultIterator* as_iterator(PyObject* self) { return reinterpret_cast<ResultIterator*>(self); }

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
  bool failed = false;
  shm::Error failure(shm::ErrorCode::kBroken, "");
  {
    const WithoutGil without_gil;
    const std::lock_guard lock(pool.mutex);
    try {
      if (has_pool(self) && !pool.lock_is_wanted()) {
        end = pool.manager.wait(self->ordered, long_wait ? &before : nullptr);
      }
    } catch (const shm::Error& error) {
      failure = error;
      failed = true;
    }
  }
  if (long_wait) pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failed) {
    // Such as no descriptors for a worker's successor: nobody would do the dead one's work.
    self->finished = true;
    pool.close();
    set_python_error(failure);
    return false;
  }
  if (end == Manager::WaitEnd::kTimeOut) long_wait = true;
  if (end == Manager::WaitEnd::kSideChannel) {
    const OwnedRef done(PyObject_CallMethod(pool.functions.ptr(), "drain_side_channel", nullptr));
    if (!done) return false;
  }
  return end == Manager::WaitEnd::kProgress || PyErr_CheckSignals() == 0;
}

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

PyObject* iterator_next(PyObject* object) {
  ResultIterator* self = as_iterator(object);
  if (self->finished) return nullptr;
  WorkerPool& pool = *self->pool;
  Scratch taken(self);
  bool asked = false;  // for a job from Python
  bool long_wait = false;
  unsigned skipped = 0;
  for (;;) {
    if (!check_usable(self)) return nullptr;
    Manager::State state = Manager::State::kPending;
    bool may_produce = false;
    bool has_news = false;
    try {
      const LockWithGil lock(pool.mutex);
      if (!has_pool(self)) continue;
      if (self->plan != nullptr) produce_from_plan(self);
      state = pool.manager.poll(self->ordered);
      has_news = pool.manager.take_side_channel_news();
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
    } catch (const shm::Error& error) {
      self->finished = true;
      set_python_error(error);
      pool.close();
      return nullptr;
    } catch (const std::bad_alloc&) {
      return PyErr_NoMemory();
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
    if (state == Manager::State::kIdle) long_wait = false;
    if (!wait(self, long_wait)) return nullptr;
  }
}

// ------------------------------------------------------------------ life

// Takes the pool from whoever has it, and gives up what is under way. A thread that waits for an
// element of the pass before finds it closed.
std::uint64_t begin_pass(WorkerPool& pool) {
  const std::uint64_t pass = ++pool.pass;
  const WorkerPool::LockAwake lock(pool);
  // The GIL was released meanwhile: what is under way may be of a later pass.
  if (pool.pass == pass && pool.manager.is_open()) {
    pool.manager.abandon();
    pool.held.clear();
  }
  return pass;
}

}  // namespace

void abandon(ResultIterator* self) {
  if (self->pool == nullptr || self->pool->manager.in_forked_child()) return;
  if (!self->pool->is_open() || self->pass != self->pool->pass) return;
  begin_pass(*self->pool);
}

namespace {

// What the iterator is to deal from: the plan behind `jobs`, or none for a Python iterator. False
// with an error set when it is neither.
bool check_jobs(PyObject* jobs, bool ordered, workers::IndexPlan*& plan) {
  if (py::isinstance<workers::IndexPlan>(jobs)) {
    plan = py::handle(jobs).cast<workers::IndexPlan*>();
  } else if (!PyIter_Check(jobs)) {
    PyErr_SetString(PyExc_TypeError, "jobs must be an IndexPlan or an iterator");
    return false;
  }
  if (plan != nullptr && plan->options().fill && !ordered) {
    PyErr_SetString(PyExc_ValueError, "batches are filled in order: fill needs ordered=True");
    return false;
  }
  return true;
}

std::unique_ptr<workers::Deliveries> new_deliveries(const workers::IndexPlan* plan) {
  return std::make_unique<workers::Deliveries>(plan == nullptr ? std::vector<std::uint64_t>()
                                                               : plan->options().skip);
}

std::unique_ptr<FillProgress> new_fill(const workers::IndexPlan* plan) {
  if (plan == nullptr || !plan->options().fill) return nullptr;
  auto fill = std::make_unique<FillProgress>();
  fill->epoch = plan->options().first_epoch;
  fill->position = plan->options().first_position;
  fill->item = plan->first_item();
  return fill;
}

PyObject* iterator_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"pool",           "jobs",    "ordered", "max_errors",
                                "max_error_rate", "batched", nullptr};
  PyObject* pool_object = nullptr;
  PyObject* jobs = nullptr;
  int ordered = 1;
  long long max_errors = -1;
  double max_error_rate = 0;
  int batched = 0;
  if (PyArg_ParseTupleAndKeywords(arguments, keywords, "OOp|Ldp", const_cast<char**>(names),
                                  &pool_object, &jobs, &ordered, &max_errors, &max_error_rate,
                                  &batched) == 0) {
    return nullptr;
  }
  WorkerPool* pool = nullptr;
  workers::IndexPlan* plan = nullptr;
  try {
    pool = py::handle(pool_object).cast<WorkerPool*>();
  } catch (const py::cast_error&) {
    PyErr_SetString(PyExc_TypeError, "pool must be a WorkerPool");
    return nullptr;
  }
  if (!check_jobs(jobs, ordered != 0, plan) || !check_process(*pool)) return nullptr;
  auto deliveries = new_deliveries(plan);
  auto fill = new_fill(plan);
  std::unique_ptr<ErrorLimit> limit;
  if (max_errors >= 0 || max_error_rate > 0) {
    limit = std::make_unique<ErrorLimit>();
    limit->most = max_errors;
    limit->rate = max_error_rate;
    limit->batched = batched != 0;
    limit->of_job.resize(pool->manager.window());
  }
  auto* self = as_iterator(type->tp_alloc(type, 0));
  if (self == nullptr) return nullptr;
  self->deliveries = deliveries.release();
  self->limit = limit.release();
  self->fill = fill.release();
  Py_INCREF(pool_object);
  Py_INCREF(jobs);
  self->pool_object = pool_object;
  self->jobs = jobs;
  self->plan = plan;
  self->pool = pool;
  self->ordered = ordered != 0;
  self->pass = begin_pass(*pool);
  return reinterpret_cast<PyObject*>(self);
}

int iterator_traverse(PyObject* object, visitproc visit, void* arg) {
  ResultIterator* self = as_iterator(object);
  Py_VISIT(self->pool_object);
  Py_VISIT(self->jobs);
  Py_VISIT(self->source_error);
  return 0;
}

int iterator_clear(PyObject* object) {
  ResultIterator* self = as_iterator(object);
  abandon(self);
  self->pool = nullptr;
  self->finished = true;
  Py_CLEAR(self->jobs);
  Py_CLEAR(self->pool_object);
  Py_CLEAR(self->source_error);
  return 0;
}

void iterator_dealloc(PyObject* object) {
  PyObject_GC_UnTrack(object);
  iterator_clear(object);
  delete as_iterator(object)->spare;
  delete as_iterator(object)->deliveries;
  delete as_iterator(object)->limit;
  delete as_iterator(object)->fill;
  Py_TYPE(object)->tp_free(object);
}

PyObject* iterator_close(PyObject* object, PyObject*) {
  ResultIterator* self = as_iterator(object);
  if (!self->finished) abandon(self);
  Py_RETURN_NONE;
}

// Gives up what is under way and goes on with other jobs: counts go on, what was delivered begins
// anew. A thread that waits in next() meanwhile finds the iterator closed.
PyObject* iterator_restart(PyObject* object, PyObject* jobs) {
  ResultIterator* self = as_iterator(object);
  workers::IndexPlan* plan = nullptr;
  if (!check_jobs(jobs, self->ordered, plan) || !check_usable(self)) return nullptr;
  auto deliveries = new_deliveries(plan);
  auto fill = new_fill(plan);
  const std::uint64_t pass = begin_pass(*self->pool);
  Py_INCREF(jobs);
  const OwnedRef old_jobs(std::exchange(self->jobs, jobs));
  const OwnedRef old_error(std::exchange(self->source_error, nullptr));
  delete std::exchange(self->deliveries, deliveries.release());
  delete std::exchange(self->fill, fill.release());
  self->plan = plan;
  self->pass = pass;
  self->has_dealt = self->jobs_done = self->finished = false;
  Py_RETURN_NONE;
}

PyObject* iterator_is_finished(PyObject* object, PyObject*) {
  return PyBool_FromLong(as_iterator(object)->finished ? 1 : 0);
}

PyObject* iterator_counts(PyObject* object, PyObject*) {
  const ResultIterator* self = as_iterator(object);
  return Py_BuildValue(
      "KKKKK", static_cast<unsigned long long>(self->elements),
      static_cast<unsigned long long>(self->bytes), static_cast<unsigned long long>(self->moved),
      static_cast<unsigned long long>(self->copied), static_cast<unsigned long long>(self->errors));
}

PyObject* iterator_delivered(PyObject* object, PyObject*) {
  const workers::Deliveries& deliveries = *as_iterator(object)->deliveries;
  OwnedRef ahead(PyList_New(0));
  if (!ahead) return nullptr;
  for (const std::uint64_t ordinal : deliveries.ahead()) {
    const OwnedRef value(PyLong_FromUnsignedLongLong(ordinal));
    if (!value || PyList_Append(ahead.get(), value.get()) != 0) return nullptr;
  }
  return Py_BuildValue("KN", static_cast<unsigned long long>(deliveries.lowest()), ahead.release());
}

PyObject* iterator_next_item(PyObject* object, PyObject*) {
  const FillProgress* fill = as_iterator(object)->fill;
  if (fill == nullptr) {
    PyErr_SetString(PyExc_ValueError, "only the jobs of a plan with fill end at any item");
    return nullptr;
  }
  return Py_BuildValue("KKK", static_cast<unsigned long long>(fill->epoch),
                       static_cast<unsigned long long>(fill->position),
                       static_cast<unsigned long long>(fill->item));
}

PyMethodDef iterator_methods[] = {
    {"close", iterator_close, METH_NOARGS, "Gives up what is under way."},
    {"counts", iterator_counts, METH_NOARGS,
     "(elements, bytes, moved, copied, errors) delivered so far."},
    {"next_item", iterator_next_item, METH_NOARGS,
     "(epoch, position, item) that a plan with fill goes on with after the last element: what its "
     "first_epoch, first_position and first_item would be. Waits for nothing."},
    {"delivered", iterator_delivered, METH_NOARGS,
     "(lowest, ahead): every job with an ordinal below `lowest` was delivered, as an element or an "
     "error, and so were those in the sorted list `ahead`. Waits for nothing."},
    {"restart", iterator_restart, METH_O, "Gives up what is under way and goes on with `jobs`."},
    {"is_finished", iterator_is_finished, METH_NOARGS, "True once next() has ended the pass."},
    {nullptr, nullptr, 0, nullptr},
};

PyTypeObject iterator_type = [] {
  PyTypeObject type = empty_type();
  type.tp_name = "stook._core.ResultIterator";
  type.tp_doc =
      "ResultIterator(pool, jobs, ordered, max_errors=-1, max_error_rate=0.0, batched=False): "
      "results of jobs, as they are asked for.";
  type.tp_basicsize = sizeof(ResultIterator);
  type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC;
  type.tp_new = iterator_new;
  type.tp_dealloc = iterator_dealloc;
  type.tp_traverse = iterator_traverse;
  type.tp_clear = iterator_clear;
  type.tp_iter = PyObject_SelfIter;
  type.tp_iternext = iterator_next;
  type.tp_methods = iterator_methods;
  return type;
}();

}  // namespace

void register_result_iterator(py::module_& module) {
  if (PyType_Ready(&iterator_type) < 0) throw py::error_already_set();
  module.add_object("ResultIterator", reinterpret_cast<PyObject*>(&iterator_type));
}

}  // namespace stook::bindings
