// The iterator over results: what becomes of a result that was taken.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bindings/errors.h"
#include "bindings/result_iterator.h"

namespace stook::bindings {

namespace {

using workers::Manager;

// Under the mutex. A batch that took other items than it was dealt moves all that come behind it:
// those are given up, and dealt anew from where it has ended.
void note_filled(ResultIterator* self, const workers::Outcome& outcome) {
  FillProgress& fill = *self->fill;
  if (outcome.kind == workers::OutcomeKind::kStartupError) return;
  if (outcome.epoch != fill.epoch) {
    fill.epoch = outcome.epoch;
    fill.position = fill.item = 0;
  }
  const std::uint64_t planned = self->plan->planned_items(fill.epoch, fill.item);
  const std::uint64_t left = self->plan->items_in(fill.epoch) - fill.item;
  const std::uint64_t consumed =
      outcome.consumed == 0 ? planned : std::min<std::uint64_t>(outcome.consumed, left);
  ++fill.position;
  fill.item += consumed;
  self->deliveries->add(fill.delivered++);
  if (consumed == planned) return;
  self->pool->manager.abandon();
  self->plan->rewind(fill.epoch, fill.position, fill.item, fill.delivered);
  self->jobs_done = false;
}

// A job of before a restart, which another thread had in hand, is none of these. Batches that are
// filled were noted as they were taken.
void note_delivery(ResultIterator* self, std::uint64_t job) {
  if (self->fill != nullptr || !self->has_dealt || job < self->first_job) return;
  self->deliveries->add(job - self->first_job);
}

void count_errors(ResultIterator* self, std::uint64_t errors) {
  self->errors += errors;
  self->pool->errors += errors;
}

// Counts what failed. False if that is too much: the pass is over then, and the error set. `error`:
// what is to be raised otherwise, if anything.
bool bear_errors(ResultIterator* self, std::uint64_t errors, PyObject* error) {
  count_errors(self, errors);
  const ErrorLimit* limit = self->limit;
  if (limit == nullptr || !limit->is_exceeded(self->errors)) return true;
  if (error != nullptr && PyErr_GivenExceptionMatches(error, PyExc_KeyboardInterrupt)) return true;
  self->finished = true;
  const OwnedRef allowed(limit->most >= 0 ? PyLong_FromLongLong(limit->most)
                                          : PyFloat_FromDouble(limit->rate));
  const OwnedRef raised(PyObject_CallMethod(self->pool->functions.ptr(), "too_many_errors", "KKOO",
                                            static_cast<unsigned long long>(self->errors),
                                            static_cast<unsigned long long>(limit->items),
                                            allowed.get(), error == nullptr ? Py_None : error));
  if (raised) raise_exception(raised.get());
  // Keeps the exception: it runs no Python code but what dropped arguments bring.
  const OwnedRef kept = take_exception();
  abandon(self);
  if (kept) raise_exception(kept.get());
  return false;
}

// The index of the item that cost a worker, or None where that is not known.
OwnedRef lost_index(const ResultIterator* self, const TakenOutcome& taken) {
  const workers::Outcome& outcome = taken.outcome;
  std::uint64_t item = 0;
  if (self->plan == nullptr) return OwnedRef(Py_NewRef(Py_None));
  if (self->plan->options().batch_size != 0) {
    if (outcome.begun == 0) return OwnedRef(Py_NewRef(Py_None));
    item = outcome.begun - 1;
    if (self->fill != nullptr) item += sizeof(workers::ItemsFrom) / sizeof item;
  }
  std::uint64_t index = 0;
  if (item >= taken.payload.size() / sizeof index) return OwnedRef(Py_NewRef(Py_None));
  std::memcpy(&index, taken.payload.data() + item * sizeof index, sizeof index);
  return OwnedRef(PyLong_FromUnsignedLongLong(index));
}

}  // namespace

void take(ResultIterator* self, TakenOutcome& taken) {
  Manager& manager = self->pool->manager;
  taken.outcome = manager.take(self->ordered);
  taken.blocks.assign(taken.outcome.blocks.begin(), taken.outcome.blocks.end());
  taken.payload.assign(taken.outcome.payload.begin(), taken.outcome.payload.end());
  taken.copy_out = !taken.blocks.empty() && manager.should_copy_out(taken.outcome);
  // Now: the next job to be dealt may have its place in the window.
  if (self->limit != nullptr && taken.outcome.kind != workers::OutcomeKind::kStartupError) {
    const std::uint32_t consumed = taken.outcome.consumed;
    taken.items = consumed != 0 ? consumed : self->limit->items_of(taken.outcome.job);
  }
  if (self->fill != nullptr) note_filled(self, taken.outcome);
}

PyObject* deliver(ResultIterator* self, const TakenOutcome& taken) {
  const workers::Outcome& outcome = taken.outcome;
  WorkerPool& pool = *self->pool;
  if (self->limit != nullptr && outcome.kind != workers::OutcomeKind::kStartupError) {
    self->limit->items += taken.items;
  }
  if (outcome.kind == workers::OutcomeKind::kElement) {
    PyObject* element =
        pool.decoder.decode_leased(taken.payload, taken.blocks, outcome.arena, taken.copy_out);
    pool.held.release(outcome.job);
    note_delivery(self, outcome.job);
    if (element == nullptr) {
      const OwnedRef error = take_exception();
      if (bear_errors(self, outcome.failed + 1, error.get())) raise_exception(error.get());
      return nullptr;
    }
    if (outcome.failed != 0 && !bear_errors(self, outcome.failed, nullptr)) {
      Py_DECREF(element);
      return nullptr;
    }
    const std::uint64_t copied = outcome.copied + (taken.copy_out ? outcome.moved : 0);
    const std::uint64_t moved = taken.copy_out ? 0 : outcome.moved;
    ++self->elements;
    self->bytes += outcome.array_bytes;
    self->moved += moved;
    self->copied += copied;
    ++pool.elements;
    pool.bytes += outcome.array_bytes;
    pool.moved += moved;
    pool.copied += copied;
    return element;
  }
  for (const workers::BlockRef& block : taken.blocks) outcome.arena->release(block.id);
  const bool startup = outcome.kind == workers::OutcomeKind::kStartupError;
  if (startup) {  // it belongs to no job
    self->finished = true;
  } else {
    pool.held.release(outcome.job);
    note_delivery(self, outcome.job);
  }
  if (outcome.kind == workers::OutcomeKind::kSkipped) {
    if (outcome.failed != 0) bear_errors(self, outcome.failed, nullptr);
    return nullptr;
  }
  OwnedRef error;
  const auto position = static_cast<unsigned long long>(outcome.position);
  if (outcome.kind == workers::OutcomeKind::kWorkerDied) {
    const OwnedRef index = lost_index(self, taken);
    error.reset(PyObject_CallMethod(pool.functions.ptr(), "worker_died", "IiiKIOO", outcome.worker,
                                    static_cast<int>(outcome.pid), outcome.status, position,
                                    outcome.attempts, outcome.out_of_memory ? Py_True : Py_False,
                                    index.get()));
  } else if (outcome.kind == workers::OutcomeKind::kTimedOut) {
    const std::chrono::duration<double> allowed = pool.manager.element_timeout();
    const OwnedRef index = lost_index(self, taken);
    error.reset(PyObject_CallMethod(pool.functions.ptr(), "timed_out", "IKdO", outcome.worker,
                                    position, allowed.count(), index.get()));
  } else {
    error.reset(PyObject_CallMethod(
        pool.functions.ptr(), startup ? "startup_error" : "element_error", "y#IK",
        reinterpret_cast<const char*>(taken.payload.data()),
        static_cast<Py_ssize_t>(taken.payload.size()), outcome.worker, position));
    if (startup) pool.close();
  }
  if (!error) error = take_exception();
  if (startup) {
    count_errors(self, 1);
    raise_exception(error.get());
  } else if (bear_errors(self, outcome.failed + 1, error.get())) {
    raise_exception(error.get());
  }
  return nullptr;
}

}  // namespace stook::bindings
