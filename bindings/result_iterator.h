// The iterator over results: a Python type of its own, so that `for` calls C++ directly. Jobs out:
// result_iterator_jobs.cpp; results in: result_iterator_results.cpp; waiting:
// result_iterator_next.cpp; the type: result_iterator.cpp.
//
// Any thread that has the GIL may call what is declared here; what it blocks on, it blocks on
// without the GIL.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "bindings/errors.h"
#include "bindings/python_api.h"
#include "bindings/worker_pool.h"
#include "workers/deliveries.h"
#include "workers/index_plan.h"

namespace stook::bindings {

// How many items of a pass may fail.
struct ErrorLimit {
  // A rate says little about the first few items.
  static constexpr std::uint64_t kFewestItems = 100;

  bool is_exceeded(std::uint64_t errors) const {
    if (most >= 0) return errors > static_cast<std::uint64_t>(most);
    return items >= kFewestItems && static_cast<double>(errors) > rate * static_cast<double>(items);
  }
  std::uint64_t& items_of(std::uint64_t job) { return of_job[job % of_job.size()]; }

  std::int64_t most = -1;             // or, if negative,
  double rate = 0;                    // of the items that were seen
  bool batched = false;               // the payload of a job from Python is a sequence of items
  std::uint64_t items = 0;            // of what was delivered
  std::vector<std::uint64_t> of_job;  // items; by number: of the jobs of a window
};

// Where a plan whose jobs take as many items as they need goes on. Written by who takes a result,
// under the mutex and with the GIL.
struct FillProgress {
  std::uint64_t epoch = 0;         // of the job to be delivered next, or of the one before it
  std::uint64_t position = 0;      // in it, of the next one
  std::uint64_t item = 0;          // that it begins with
  std::uint64_t delivered = 0;     // jobs
  std::vector<std::byte> payload;  // scratch
};

struct ResultIterator {
  PyObject_HEAD PyObject* pool_object;  // keeps the pool
  PyObject* jobs;                       // IndexPlan, or any iterator of (epoch, position, payload)
  workers::IndexPlan* plan;
  WorkerPool* pool;
  std::uint64_t pass;
  // Written by who delivers, with the GIL, or with `fill` by who takes, with the mutex besides: a
  // state is taken without the manager and its mutex.
  workers::Deliveries* deliveries;
  std::uint64_t first_job;  // the manager's number of the first job dealt
  bool has_dealt;
  FillProgress* fill;  // of a plan that is filled; else none
  bool ordered;
  bool jobs_done;
  bool finished;           // StopIteration from now on
  PyObject* source_error;  // what `jobs` raised, for its place in the order
  // A job that `jobs` gave and that is not dealt yet, since Ctrl-C came, or there was no memory:
  // the next one to be dealt. GIL.
  PyObject* drawn;
  // More has failed than may, with an element that was delivered nevertheless: what is raised in
  // place of the next one. GIL.
  PyObject* too_many;
  std::uint64_t elements;
  std::uint64_t bytes;
  std::uint64_t moved;
  std::uint64_t copied;
  std::uint64_t errors;
  ErrorLimit* limit;  // none: any number may fail. GIL
  // A thread asks `jobs` for one. GIL.
  bool producing;
  // poll() found nothing, and the pool's descriptor tells of what comes. GIL.
  bool armed;
  // Coroutines that wait for an element: counted by Python, told after each next(). GIL.
  int watchers;
  // Scratch for one thread at a time, so that an element costs no allocation. GIL.
  TakenOutcome* spare;
};

// False once it was closed, or its loader was or has begun another pass. To be asked again after
// every wait for the mutex: the GIL was released meanwhile.
bool has_pool(const ResultIterator* self);

// Under the mutex: deals jobs of the plan for as long as the window allows. Runs no Python code.
// Throws as Manager::produce does.
void produce_from_plan(ResultIterator* self);

// Asks the Python iterator for one job and deals it. False with an error set. Not under the mutex.
bool produce_from_python(ResultIterator* self);

// Under the mutex: takes what is ready, and copies out what the manager would reuse.
void take(ResultIterator* self, TakenOutcome& taken);

// The element, or nullptr: with its error set, or without one if the job was skipped. Not under the
// mutex.
PyObject* deliver(ResultIterator* self, const TakenOutcome& taken);

// Raises what was put off behind the last element, which ends the pass; nullptr.
PyObject* end_with_too_many(ResultIterator* self);

inline ResultIterator* as_iterator(PyObject* self) {
  return reinterpret_cast<ResultIterator*>(self);
}

// False with an error set: in a forked child; or there, or where has_pool() is false.
bool check_process(const WorkerPool& pool);
bool check_usable(ResultIterator* self);

// The methods of the type that give elements: see result_iterator.cpp.
PyObject* iterator_next(PyObject* object);
PyObject* iterator_poll(PyObject* object, PyObject* const* arguments, Py_ssize_t count);
PyObject* iterator_fileno(PyObject* object, PyObject*);

// Gives up what is under way, if this iterator still has the pool, and the pool with it.
void abandon(ResultIterator* self);
// The same, and keeps the pool: it can go on with other jobs.
void end_pass(ResultIterator* self);

// What `function` returns, or nullptr with the error set that it threw.
template <class Function>
PyObject* catching(Function&& function) {
  try {
    return function();
  } catch (const std::exception&) {
    set_caught_error();
    return nullptr;
  }
}

}  // namespace stook::bindings
