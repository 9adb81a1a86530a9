// The iterator over results: its jobs.
#include "bindings/result_iterator.h"

#include <cstddef>
#include <exception>
#include <span>
#include <utility>
#include <vector>

#include "bindings/errors.h"
#include "bindings/job_kinds.h"
#include "shm/error.h"

namespace stook::bindings {

namespace {

using workers::Manager;

// Under the mutex. Deals a job; as only one iterator at a time has the pool, and its jobs have an
// order, the numbers of a pass follow one another.
std::uint64_t produce(ResultIterator* self, const workers::JobOrder& order, std::uint64_t items) {
  const std::uint64_t number = self->pool->manager.produce(order);
  if (self->limit != nullptr) self->limit->items_of(number) = items;
  if (!self->has_dealt) self->first_job = number;
  self->has_dealt = true;
  return number;
}

// Whom a job is for, if its tuple has a fourth member: an index, or None for anybody. False with an
// error set.
bool parse_worker(PyObject* worker, std::uint32_t count, workers::JobOrder& order) {
  if (worker == nullptr || worker == Py_None) return true;
  const OwnedRef number(PyNumber_Index(worker));
  if (!number) return false;
  int overflow = 0;
  const long long index = PyLong_AsLongLongAndOverflow(number.get(), &overflow);
  if (index == -1 && overflow == 0 && PyErr_Occurred() != nullptr) return false;
  if (overflow != 0 || index < 0 || index >= count) {
    PyErr_Format(PyExc_ValueError,
                 "a job is for worker %S, and the workers are 0 to %lu; deal jobs to these alone",
                 number.get(), static_cast<unsigned long>(count - 1));
    return false;
  }
  order.worker = static_cast<std::uint32_t>(index);
  return true;
}

// Counted where errors may be too many.
bool count_items(ResultIterator* self, PyObject* payload, std::uint64_t& items) {
  items = 1;
  if (self->limit == nullptr || !self->limit->batched) return true;
  const Py_ssize_t size = PyObject_Size(payload);
  if (size < 0) return false;
  items = static_cast<std::uint64_t>(size);
  return true;
}

// An item that cannot be sent: the error that is set, which is cleared, takes the way of the
// results, and so its place in the order. False, with an error set, if that is Ctrl-C's, or there
// is no memory for it.
bool encode_failed_item(ResultIterator* self, OwnedRef& bytes, workers::JobOrder& order) {
  const OwnedRef exception = take_exception();
  if (!exception || PyErr_GivenExceptionMatches(exception.get(), PyExc_KeyboardInterrupt)) {
    if (exception) raise_exception(exception.get());
    return false;
  }
  bytes.reset(PyObject_CallMethod(self->pool->functions.ptr(), "encode_unsendable", "OK",
                                  exception.get(),
                                  static_cast<unsigned long long>(order.position)));
  if (!bytes || !PyBytes_Check(bytes.get())) return false;
  order.kind = kFailedJob;
  order.blocks = {};
  order.payload = std::as_bytes(std::span(PyBytes_AS_STRING(bytes.get()),
                                          static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get()))));
  return true;
}

// The payload as the workers get it. False with an error set.
bool encode(WorkerPool& pool, PyObject* payload, workers::JobOrder& order) {
  Encoder& encoder = pool.encoder;
  switch (encoder.encode(payload, false)) {
    case EncodeResult::kDone:
      order.payload = encoder.payload();
      order.blocks = encoder.made_blocks();
      return true;
    case EncodeResult::kPythonError:
      break;
    case EncodeResult::kNoRoom: {
      const OwnedRef error(
          PyObject_CallMethod(pool.functions.ptr(), "exhausted_error", "K",
                              static_cast<unsigned long long>(encoder.requested_bytes())));
      if (error) raise_exception(error.get());
      break;
    }
  }
  return false;
}

// Deals the job of `pass`, unless that was given up meanwhile. Throws as Manager::produce does.
void deal(ResultIterator* self, std::uint64_t pass, const workers::JobOrder& order,
          std::uint64_t items, std::vector<OwnedRef> sent) {
  const LockWithGil lock(self->pool->mutex);
  Manager& manager = self->pool->manager;
  if (self->pass == pass && has_pool(self) && manager.can_produce()) {
    self->pool->held.hold(produce(self, order, items), std::move(sent));
  } else if (manager.is_open()) {  // closed or iterated again meanwhile
    manager.free_arguments(order.blocks);
  }
}

// The next job that Python gave: one that could not be dealt before, or a new one. Nothing if there
// is none, or the pass was given up meanwhile; an error that is set then is not the source's.
OwnedRef draw(ResultIterator* self) {
  if (self->drawn != nullptr) return OwnedRef(Py_NewRef(self->drawn));
  const std::uint64_t pass = self->pass;
  Py_INCREF(self->jobs);
  const OwnedRef jobs(self->jobs);
  OwnedRef job(PyIter_Next(jobs.get()));
  if (self->pass != pass) return OwnedRef();  // restarted meanwhile
  if (job) {
    self->drawn = Py_NewRef(job.get());
    return job;
  }
  self->jobs_done = true;
  if (PyErr_Occurred() == nullptr) return job;
  if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
    // Not the source's. An iterator may stand it, and be asked again; a generator is over then.
    self->jobs_done = false;
  } else {
    self->source_error = take_exception().release();
  }
  return job;
}

// The plan's next job. False if there is none, or none can be had: then `jobs` has come to an end
// here, and the error has its place in the order.
bool plan_next(ResultIterator* self, workers::IndexPlan::Job& job) {
  try {
    if (self->plan->next(job)) return true;
  } catch (const std::exception&) {
    set_caught_error();
    self->source_error = take_exception().release();  // the first: the jobs end with it
  }
  self->jobs_done = true;
  return false;
}

}  // namespace

bool has_pool(const ResultIterator* self) {
  return self->pass == self->pool->pass.load(std::memory_order_seq_cst) && self->pool->is_open();
}

void produce_from_plan(ResultIterator* self) {
  Manager& manager = self->pool->manager;
  workers::IndexPlan::Job job;
  while (!self->jobs_done && manager.can_produce() && plan_next(self, job)) {
    workers::JobOrder order;
    order.epoch = job.epoch;
    order.position = job.number;
    order.kind = self->plan->options().batch_size == 0 ? kIndexJob : kIndicesJob;
    order.payload = std::as_bytes(job.indices);
    if (self->fill != nullptr) {
      const workers::ItemsFrom from = self->plan->items_from(job);
      const std::span<const std::byte> head = std::as_bytes(std::span(&from, 1));
      std::vector<std::byte>& payload = self->fill->payload;
      payload.assign(head.begin(), head.end());
      payload.insert(payload.end(), order.payload.begin(), order.payload.end());
      order.kind = kFilledJob;
      order.payload = payload;
    }
    produce(self, order, job.indices.size());
  }
}

bool produce_from_python(ResultIterator* self) {
  // Threads may share the iterator; a generator, and the encoder, take one at a time.
  self->producing = true;
  const struct Done {
    ResultIterator* iterator;
    ~Done() { iterator->producing = false; }
  } done{self};
  const std::uint64_t pass = self->pass;
  const OwnedRef job = draw(self);
  if (!job) return PyErr_Occurred() == nullptr;
  unsigned long long epoch = 0;
  unsigned long long position = 0;
  PyObject* payload = nullptr;
  PyObject* worker = nullptr;
  workers::JobOrder order;
  std::uint64_t items = 1;
  if (PyArg_ParseTuple(job.get(), "KKO|O", &epoch, &position, &payload, &worker) == 0 ||
      !parse_worker(worker, self->pool->manager.worker_count(), order) ||
      !count_items(self, payload, items)) {
    // No job at all: `jobs` has come to an end here, as if it had raised.
    if (self->pass != pass) return false;
    self->jobs_done = true;
    self->source_error = take_exception().release();
    Py_CLEAR(self->drawn);
    return true;
  }
  order.epoch = epoch;
  order.position = position;
  order.kind = kEncodedJob;
  OwnedRef failure;
  bool can_be_sent = encode(*self->pool, payload, order);
  std::vector<OwnedRef> sent = self->pool->encoder.take_sent().finish(true);
  for (;;) {
    if (!can_be_sent && !encode_failed_item(self, failure, order)) return false;
    try {
      deal(self, pass, order, items, std::move(sent));
      break;
    } catch (const shm::Error& error) {
      set_python_error(error);
      // Not even its error finds room: the job waits until there is some.
      if (!std::exchange(can_be_sent, false)) return false;
    }
  }
  if (self->pass == pass) Py_CLEAR(self->drawn);
  return true;
}

}  // namespace stook::bindings
