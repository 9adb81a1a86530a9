// The iterator over results: the type, and its life.
#include "bindings/result_iterator.h"

#include <structmember.h>

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "bindings/errors.h"
#include "bindings/register.h"

namespace stook::bindings {
namespace {

// Takes the pool from whoever has it, and gives up what is under way. A thread that waits for an
// element of another iterator finds that closed.
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

void end_pass(ResultIterator* self) {
  self->finished = true;
  const WorkerPool::LockAwake lock(*self->pool);
  if (!has_pool(self)) return;
  self->pool->manager.abandon();
  self->pool->held.clear();
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

PyObject* make_iterator(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
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

PyObject* iterator_new(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  return catching([&] { return make_iterator(type, arguments, keywords); });
}

int iterator_traverse(PyObject* object, visitproc visit, void* arg) {
  ResultIterator* self = as_iterator(object);
  Py_VISIT(self->pool_object);
  Py_VISIT(self->jobs);
  Py_VISIT(self->source_error);
  Py_VISIT(self->drawn);
  Py_VISIT(self->too_many);
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
  Py_CLEAR(self->drawn);
  Py_CLEAR(self->too_many);
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
// anew. A thread that waits in next() meanwhile goes on with these, or, if it looks while they take
// the place of the others, finds the iterator closed. One that stands in the old jobs' source holds
// up the new ones from Python until it is back.
PyObject* restart(ResultIterator* self, PyObject* jobs) {
  workers::IndexPlan* plan = nullptr;
  if (!check_jobs(jobs, self->ordered, plan) || !check_usable(self)) return nullptr;
  auto deliveries = new_deliveries(plan);
  auto fill = new_fill(plan);
  const std::uint64_t pass = begin_pass(*self->pool);
  Py_INCREF(jobs);
  const OwnedRef old_jobs(std::exchange(self->jobs, jobs));
  const OwnedRef old_error(std::exchange(self->source_error, nullptr));
  const OwnedRef old_job(std::exchange(self->drawn, nullptr));
  const OwnedRef old_limit(std::exchange(self->too_many, nullptr));
  delete std::exchange(self->deliveries, deliveries.release());
  delete std::exchange(self->fill, fill.release());
  self->plan = plan;
  self->pass = pass;
  self->has_dealt = self->jobs_done = self->finished = false;
  Py_RETURN_NONE;
}

PyObject* iterator_restart(PyObject* object, PyObject* jobs) {
  return catching([&] { return restart(as_iterator(object), jobs); });
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

PyObject* delivered(const ResultIterator* self) {
  // Copied out: to make a list may collect garbage, and run a finalizer that restarts this.
  const auto lowest = static_cast<unsigned long long>(self->deliveries->lowest());
  const std::vector<std::uint64_t> ordinals = self->deliveries->ahead();
  OwnedRef ahead(PyList_New(static_cast<Py_ssize_t>(ordinals.size())));
  if (!ahead) return nullptr;
  for (std::size_t i = 0; i < ordinals.size(); ++i) {
    PyObject* ordinal = PyLong_FromUnsignedLongLong(ordinals[i]);
    if (ordinal == nullptr) return nullptr;
    PyList_SET_ITEM(ahead.get(), static_cast<Py_ssize_t>(i), ordinal);
  }
  return Py_BuildValue("KN", lowest, ahead.release());
}

PyObject* iterator_delivered(PyObject* object, PyObject*) {
  return catching([&] { return delivered(as_iterator(object)); });
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
    {"poll", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(iterator_poll)),
     METH_FASTCALL,
     "poll(later, soon): as next(), but does not wait. `later` if there is nothing, and what comes "
     "makes fileno() readable, unless a next() in another thread hears of it; `soon` if there is "
     "nothing and nothing would tell."},
    {"fileno", iterator_fileno, METH_NOARGS, "What to watch after poll()."},
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

PyMemberDef iterator_members[] = {
    {"watchers", T_INT, offsetof(ResultIterator, watchers), 0,
     "How many wait after poll(): if any, next() calls self._tell_waiters() at its end."},
    {nullptr, 0, 0, 0, nullptr},
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
  type.tp_members = iterator_members;
  return type;
}();

}  // namespace

void register_result_iterator(py::module_& module) {
  if (PyType_Ready(&iterator_type) < 0) throw py::error_already_set();
  module.add_object("ResultIterator", reinterpret_cast<PyObject*>(&iterator_type));
}

}  // namespace stook::bindings
