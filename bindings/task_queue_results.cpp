// TaskQueue: results in. Waiting for them: task_queue_wait.cpp.
#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "bindings/errors.h"
#include "bindings/job_kinds.h"
#include "bindings/signal_handlers.h"
#include "bindings/task_queue.h"
#include "shm/error.h"

namespace stook::bindings {

namespace {

using workers::Manager;

// Jobs that one deliver() hands out before its caller can look whether his own is done.
constexpr int kMostAtOnce = 64;

// What `call` returns. If a signal handler has raised in it, `interrupt` is that error, the
// program's, and the call is made again: whose result it makes is to have it nevertheless.
template <class Call>
OwnedRef unless_interrupted(Call&& call, OwnedRef& interrupt) {
  OwnedRef result(call());
  if (result || !handler_raised()) return result;
  interrupt = take_exception();
  return OwnedRef(call());
}

// Sets an interrupt in the place of the error that may be set, if there is one; else says whether
// all went well.
bool pass_on_interrupt(bool went_well, const OwnedRef& interrupt) {
  if (!interrupt) return went_well;
  if (!went_well) PyErr_Clear();
  raise_exception(interrupt.get());
  return false;
}

}  // namespace

// While a task is being delivered. Others may begin and end within, and also in other threads.
class TaskQueue::Delivering {
 public:
  explicit Delivering(TaskQueue& queue) : queue_(queue), thread_(PyThread_get_thread_ident()) {
    queue.deliveries_.push_back({thread_, false});
  }
  ~Delivering() {
    auto& all = queue_.deliveries_;
    const auto mine =
        std::find_if(all.rbegin(), all.rend(),
                     [this](const Delivery& delivery) { return delivery.thread == thread_; })
            .base() -
        1;
    if (mine->is_set_aside) --queue_.set_aside_;
    all.erase(mine);
  }
  Delivering(const Delivering&) = delete;
  Delivering& operator=(const Delivering&) = delete;

 private:
  TaskQueue& queue_;
  unsigned long thread_;
};

bool TaskQueue::take(TakenOutcome& taken) {
  const LockWithGil lock(pool_->mutex);
  Manager& manager = pool_->manager;
  if (!manager.is_open() || manager.poll(false) != Manager::State::kReady) return false;
  taken.outcome = manager.take(false);
  taken.blocks.assign(taken.outcome.blocks.begin(), taken.outcome.blocks.end());
  taken.payload.assign(taken.outcome.payload.begin(), taken.outcome.payload.end());
  taken.copy_out = !taken.blocks.empty() && manager.should_copy_out(taken.outcome);
  return true;
}

int TaskQueue::deliver() {
  const unsigned long me = pumper_;
  const int delivered = deliver_some();
  if (delivered < 0) return -1;
  if (still_pumps(me) && !look_around()) return -1;
  return feed() ? delivered : -1;
}

int TaskQueue::deliver_some() {
  int delivered = 0;
  const unsigned long me = pumper_;
  TakenOutcome taken;
  try {
    if (std::exchange(armed_, false) && pool_->is_open()) {
      const LockWithGil lock(pool_->mutex);
      Manager& manager = pool_->manager;
      if (manager.is_open()) {
        const Manager::Sleep glance{true, true, 0, manager.descriptor()};
        manager.end_sleep(Manager::sleep(glance, nullptr));
      }
    }
    while (delivered < kMostAtOnce && !broken_ && still_pumps(me)) {
      if (!failed_.empty()) {
        const Delivering delivering(*this);
        Task task = std::move(failed_.front());
        failed_.pop_front();
        ++delivered;
        const OwnedRef error = std::move(task.failure);
        if (!deliver_failure(task, error.get(), -1)) return -1;
        continue;
      }
      if (!pool_->is_open() || !take(taken)) break;
      if (taken.outcome.kind == workers::OutcomeKind::kStartupError) {
        broken_.reset(PyObject_CallMethod(pool_->functions.ptr(), "startup_error", "y#II",
                                          reinterpret_cast<const char*>(taken.payload.data()),
                                          static_cast<Py_ssize_t>(taken.payload.size()),
                                          taken.outcome.worker, 0U));
        if (!broken_) set_broken();
        break;
      }
      const auto found = in_flight_.find(taken.outcome.job);
      if (found == in_flight_.end()) continue;  // failed by close() meanwhile
      Task task = std::move(found->second);
      in_flight_.erase(found);
      job_of_.erase(task.number);
      argument_bytes_ -= task.argument_bytes;
      const Delivering delivering(*this);
      // Before the sink, which may be long: the workers go on meanwhile.
      const bool fed = feed();
      const OwnedRef interrupt = fed ? OwnedRef() : take_exception();
      ++delivered;
      if (!deliver_outcome(std::move(task), taken)) return -1;
      if (interrupt) {
        raise_exception(interrupt.get());
        return -1;
      }
    }
  } catch (const shm::Error& error) {
    set_python_error(error);
    set_broken();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    set_broken();
  }
  return delivered;
}

// Deaths and log records. False if a signal handler raised.
bool TaskQueue::look_around() {
  bool has_news = false;
  std::vector<workers::Death> deaths;
  {
    const LockWithGil lock(pool_->mutex);
    if (!pool_->manager.is_open()) return true;
    has_news = pool_->manager.take_side_channel_news();
    deaths = pool_->manager.take_deaths();
  }
  if (has_news) {
    const OwnedRef done(PyObject_CallMethod(pool_->functions.ptr(), "drain_side_channel", nullptr));
    if (!done) {
      if (handler_raised()) return false;
      PyErr_WriteUnraisable(pool_->functions.ptr());
    }
  }
  if (deaths.empty()) return true;
  const OwnedRef list(PyList_New(0));
  for (const workers::Death& death : deaths) {
    const OwnedRef entry(
        Py_BuildValue("Iii", death.worker, static_cast<int>(death.pid), death.status));
    if (!list || !entry || PyList_Append(list.get(), entry.get()) != 0) return false;
  }
  const OwnedRef done(PyObject_CallOneArg(on_deaths_.get(), list.get()));
  if (done) return true;
  if (handler_raised()) return false;
  PyErr_WriteUnraisable(on_deaths_.get());
  return true;
}

OwnedRef TaskQueue::take_error() { return take_exception(); }

// The error that is set: a result that cannot be unpickled.
OwnedRef TaskQueue::take_undecodable() {
  OwnedRef error = take_exception();
  if (!error) return error;
  OwnedRef noted(
      PyObject_CallMethod(pool_->functions.ptr(), "undecodable_result", "O", error.get()));
  if (noted) return noted;
  PyErr_Clear();
  return error;
}

OwnedRef TaskQueue::make_error(const TakenOutcome& taken, OwnedRef& interrupt) {
  const workers::Outcome& outcome = taken.outcome;
  PyObject* functions = pool_->functions.ptr();
  OwnedRef error = unless_interrupted(
      [&] {
        if (outcome.kind == workers::OutcomeKind::kWorkerDied) {
          return PyObject_CallMethod(functions, "task_died", "IiiO", outcome.worker,
                                     static_cast<int>(outcome.pid), outcome.status,
                                     outcome.out_of_memory ? Py_True : Py_False);
        }
        return PyObject_CallMethod(functions, "task_error", "y#",
                                   reinterpret_cast<const char*>(taken.payload.data()),
                                   static_cast<Py_ssize_t>(taken.payload.size()));
      },
      interrupt);
  return error ? std::move(error) : take_exception();
}

bool TaskQueue::deliver_outcome(Task task, TakenOutcome& taken) {
  const workers::Outcome& outcome = taken.outcome;
  if (outcome.kind == workers::OutcomeKind::kElement) {
    pool_->elements += 1;
    pool_->bytes += outcome.array_bytes;
    const std::uint64_t moved = taken.copy_out ? 0 : outcome.moved;
    pool_->moved += moved;
    pool_->copied += outcome.copied + outcome.moved - moved;
    if (has_items(task.kind)) return deliver_items(std::move(task), taken);
    OwnedRef interrupt;
    const OwnedRef value(pool_->decoder.decode_leased(taken.payload, taken.blocks, outcome.arena,
                                                      taken.copy_out, &interrupt));
    if (!value) {
      const OwnedRef error = take_undecodable();
      return pass_on_interrupt(deliver_failure(task, error.get(), -1), interrupt);
    }
    PyObject* arguments[] = {Py_True, value.get()};
    const bool went_well = call_sink(task, arguments, 2);
    finish(std::move(task));
    return pass_on_interrupt(went_well, interrupt);
  }
  for (const workers::BlockRef& block : taken.blocks) outcome.arena->release(block.id);
  pool_->errors += 1;
  OwnedRef interrupt;
  const OwnedRef error = make_error(taken, interrupt);
  const auto begun = static_cast<Py_ssize_t>(outcome.begun);
  if (!has_items(task.kind) || outcome.kind != workers::OutcomeKind::kWorkerDied || begun == 0 ||
      begun >= PyList_GET_SIZE(task.payload.get())) {
    return pass_on_interrupt(deliver_failure(task, error.get(), -1), interrupt);
  }
  // The items behind the one that was running have not run.
  const bool went_well = deliver_failure(task, error.get(), begun);
  requeue_rest(std::move(task), begun);
  return pass_on_interrupt(went_well, interrupt);
}

bool TaskQueue::deliver_items(Task task, TakenOutcome& taken) {
  shm::LeasedArena* arena = taken.outcome.arena;
  const Py_ssize_t size = PyList_GET_SIZE(task.payload.get());
  const std::span<const std::byte> payload = taken.payload;
  const std::span<const workers::BlockRef> blocks = taken.blocks;
  std::uint64_t count = 0;
  std::uint64_t made_at = 0;
  if (payload.size() >= 2 * sizeof count) {
    std::memcpy(&count, payload.data(), sizeof count);
    std::memcpy(&made_at, payload.data() + sizeof count, sizeof made_at);
  }
  std::uint64_t moved_at = 0;
  const std::uint64_t moved_end = made_at;
  std::size_t at = 2 * sizeof count;
  bool whole = count != 0 && count <= static_cast<std::uint64_t>(size) && made_at <= blocks.size();
  OwnedRef results(PyList_New(whole ? static_cast<Py_ssize_t>(count) : 0));
  OwnedRef errors;
  if (!results) whole = false;
  OwnedRef interrupt;
  std::vector<workers::BlockRef> own;
  ItemHeader header{};
  for (std::uint64_t i = 0; whole && i < count; i += header.count) {
    if (payload.size() - at < sizeof header) {
      whole = false;
      break;
    }
    std::memcpy(&header, payload.data() + at, sizeof header);
    at += sizeof header;
    whole = header.bytes <= payload.size() - at && header.moved <= moved_end - moved_at &&
            header.made <= blocks.size() - made_at && header.count != 0 &&
            header.count <= count - i && (header.count == 1 || header.kind == kPlainItems);
    if (!whole) break;
    const std::span<const std::byte> item = payload.subspan(at, header.bytes);
    at += (header.bytes + 7) / 8 * 8;
    at = std::min(at, payload.size());
    if (header.kind == kPlainItems) {
      whole = pool_->decoder.decode_plain(item, results.get(), static_cast<Py_ssize_t>(i),
                                          static_cast<Py_ssize_t>(header.count));
      if (!whole) PyErr_Clear();
      continue;
    }
    own.assign(blocks.begin() + static_cast<std::ptrdiff_t>(moved_at),
               blocks.begin() + static_cast<std::ptrdiff_t>(moved_at + header.moved));
    own.insert(own.end(), blocks.begin() + static_cast<std::ptrdiff_t>(made_at),
               blocks.begin() + static_cast<std::ptrdiff_t>(made_at + header.made));
    moved_at += header.moved;
    made_at += header.made;
    OwnedRef value;
    OwnedRef error;
    if (header.kind == kOneItem) {
      value.reset(pool_->decoder.decode_leased(item, own, arena, taken.copy_out, &interrupt));
      if (!value) error = take_undecodable();
    } else {
      pool_->errors += 1;
      error = unless_interrupted(
          [&] {
            return PyObject_CallMethod(pool_->functions.ptr(), "task_error", "y#",
                                       reinterpret_cast<const char*>(item.data()),
                                       static_cast<Py_ssize_t>(item.size()));
          },
          interrupt);
      if (!error) error = take_exception();
    }
    if (error) {
      if (!errors) errors.reset(PyDict_New());
      const OwnedRef key(PyLong_FromUnsignedLongLong(i));
      if (!errors || !key || PyDict_SetItem(errors.get(), key.get(), error.get()) != 0) {
        PyErr_Clear();
      }
      value.reset(Py_NewRef(Py_None));
    }
    PyList_SET_ITEM(results.get(), static_cast<Py_ssize_t>(i), value.release());
  }
  if (!whole) {
    // Blocks that no item took over.
    for (std::uint64_t i = moved_at; i < moved_end && i < blocks.size(); ++i) {
      arena->release(blocks[i].id);
    }
    for (std::uint64_t i = made_at; i < blocks.size(); ++i) arena->release(blocks[i].id);
    set_stook_error("StookError", "a worker published malformed results");
    const OwnedRef error = take_exception();
    return pass_on_interrupt(deliver_failure(task, error.get(), -1), interrupt);
  }
  PyObject* arguments[] = {Py_True, results.get(), errors ? errors.get() : Py_None};
  const bool went_well = call_sink(task, arguments, 3);
  const auto done = static_cast<Py_ssize_t>(count);
  if (done < size) {
    requeue_rest(std::move(task), done);
  } else {
    finish(std::move(task));
  }
  return pass_on_interrupt(went_well, interrupt);
}

void TaskQueue::requeue_rest(Task task, Py_ssize_t done) {
  const Py_ssize_t size = PyList_GET_SIZE(task.payload.get());
  OwnedRef rest(PyList_GetSlice(task.payload.get(), done, size));
  if (!rest) {
    const OwnedRef error = take_exception();
    if (!deliver_failure(task, error.get(), size - done)) PyErr_Clear();
    return finish(std::move(task));
  }
  task.payload = std::move(rest);
  if (closed_error_) {  // by the sink
    if (!deliver_failure(task, closed_error_.get(), -1)) PyErr_WriteUnraisable(task.sink.get());
    return;
  }
  pending_.push_front(std::move(task));  // and deliver() feeds
}

// `items`: how many of the task's fail; -1: all of it, which then is done.
bool TaskQueue::deliver_failure(Task& task, PyObject* error, Py_ssize_t items) {
  const bool all = items < 0;
  bool went_well = true;
  if (!has_items(task.kind)) {
    PyObject* arguments[] = {Py_False, error};
    went_well = call_sink(task, arguments, 2);
  } else {
    if (all) items = PyList_GET_SIZE(task.payload.get());
    const OwnedRef results(PyList_New(items));
    const OwnedRef errors(PyDict_New());
    if (!results || !errors) return false;
    for (Py_ssize_t i = 0; i < items; ++i) {
      PyList_SET_ITEM(results.get(), i, Py_NewRef(Py_None));
      const OwnedRef key(PyLong_FromSsize_t(i));
      if (!key || PyDict_SetItem(errors.get(), key.get(), error) != 0) return false;
    }
    PyObject* arguments[] = {Py_True, results.get(), errors.get()};
    went_well = call_sink(task, arguments, 3);
  }
  if (all) finish(std::move(task));
  return went_well;
}

// False if a signal handler raised, which has to go on to the caller.
bool TaskQueue::call_sink(const Task& task, PyObject* const* arguments, std::size_t count) {
  const OwnedRef sink(Py_NewRef(task.sink.get()));
  const OwnedRef done(PyObject_Vectorcall(sink.get(), arguments, count, nullptr));
  if (done) return true;
  // A signal handler raised, perhaps before the sink had done its work: it is called again, and
  // knows whether it had. If it raises once more, it was not the handler.
  const OwnedRef interrupt = take_exception();
  const OwnedRef again(PyObject_Vectorcall(sink.get(), arguments, count, nullptr));
  if (!again) {
    PyErr_WriteUnraisable(sink.get());
    return true;
  }
  raise_exception(interrupt.get());
  return false;
}

}  // namespace stook::bindings
