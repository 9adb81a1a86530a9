// The iterator over results: what becomes of a result that was taken.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

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

// Counts what failed. True if that is too much. `error`: of what failed, if it is known.
bool is_too_much(ResultIterator* self, std::uint64_t errors, PyObject* error) {
  count_errors(self, errors);
  if (self->limit == nullptr || !self->limit->is_exceeded(self->errors)) return false;
  return error == nullptr || !PyErr_GivenExceptionMatches(error, PyExc_KeyboardInterrupt);
}

// What says so, or what was raised as that was made.
OwnedRef too_many_errors(ResultIterator* self, PyObject* error) {
  const ErrorLimit& limit = *self->limit;
  const OwnedRef allowed(limit.most >= 0 ? PyLong_FromLongLong(limit.most)
                                         : PyFloat_FromDouble(limit.rate));
  OwnedRef made(PyObject_CallMethod(self->pool->functions.ptr(), "too_many_errors", "KKOO",
                                    static_cast<unsigned long long>(self->errors),
                                    static_cast<unsigned long long>(limit.items), allowed.get(),
                                    error == nullptr ? Py_None : error));
  return made ? std::move(made) : take_exception();
}

// Ends the pass, which can be set back then, with an error.
void raise_and_end(ResultIterator* self, const OwnedRef& error) {
  end_pass(self);
  raise_exception(error.get());
}

// Raises what came in place of an element, or, if that is one too many, says so.
void raise_error(ResultIterator* self, std::uint64_t errors, PyObject* error) {
  if (is_too_much(self, errors, error)) {
    raise_and_end(self, too_many_errors(self, error));
  } else {
    raise_exception(error);
  }
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
    OwnedRef element(
        pool.decoder.decode_leased(taken.payload, taken.blocks, outcome.arena, taken.copy_out));
    pool.held.release(outcome.job);
    note_delivery(self, outcome.job);
    if (!element) {
      const OwnedRef error = take_exception();
      raise_error(self, outcome.failed + 1, error.get());
      return nullptr;
    }
    // It is good, and counts as delivered: the next one is what is too much.
    if (outcome.failed != 0 && is_too_much(self, outcome.failed, nullptr)) {
      const OwnedRef before(
          std::exchange(self->too_many, too_many_errors(self, nullptr).release()));
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
    return element.release();
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
    if (outcome.failed != 0 && is_too_much(self, outcome.failed, nullptr)) {
      raise_and_end(self, too_many_errors(self, nullptr));
    }
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
  } else {
    raise_error(self, outcome.failed + 1, error.get());
  }
  return nullptr;
}

PyObject* end_with_too_many(ResultIterator* self) {
  raise_and_end(self, OwnedRef(std::exchange(self->too_many, nullptr)));
  return nullptr;
}

}  // namespace stook::bindings
